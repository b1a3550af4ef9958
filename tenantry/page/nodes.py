"""The nodes, and the tree of actors of each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry.page.actions import said, whole
from tenantry.page.pages import Pages, Visit
from tenantry.page.viewing import Viewer, let_in

ROWS: Final = 40
"""Actors right below the supervisor on a page, each with its own."""

_WELL: Final = frozenset(
    {"active", "busy", "consuming", "idle", "paused", "running", "waiting", "watching"}
)

pages: Final = Pages()


@pages("GET /ui/nodes")
async def show_nodes(visit: Visit) -> Response:
    """List the nodes; those who may, empty one."""
    who, nodes = await asyncio.gather(visit.api.get("/whoami"), visit.api.get("/nodes"))
    viewer = Viewer.of(let_in(who).body)
    listed = let_in(nodes).body["data"]
    return visit.html("nodes.html", viewer, here="ui/nodes", listed=listed, done=said(visit))


@pages("GET /ui/actors")
async def show_actors(visit: Visit) -> Response:
    """Show a node's tree of actors: what hangs below what, its state, its mailbox, restarts."""
    node = visit.given.get("node") or None
    who, status = await asyncio.gather(
        visit.api.get("/whoami"), visit.api.get("/status", node=node)
    )
    viewer = Viewer.of(let_in(who).body)
    system = let_in(status).body
    search, unwell = visit.given.get("search", ""), visit.given.get("unwell") == "yes"
    found = [
        one
        for one in system["tree"]["children"]
        if search.lower() in one["name"].lower() and not (unwell and is_well(one))
    ]
    begin = whole(visit.given.get("begin", "0"))
    begin = begin if isinstance(begin, int) and begin > 0 else 0
    chosen = {"node": node or "", "search": search, "unwell": "yes" if unwell else ""}
    following = None
    if len(found) > begin + ROWS:
        following = "actors?" + urlencode({**chosen, "begin": begin + ROWS})
    return visit.html(
        "actors.html",
        viewer,
        here="ui/actors",
        system=system,
        tree={**system["tree"], "children": found[begin : begin + ROWS]},
        count=len(found),
        nodes=_names(system["nodes"]),
        chosen=chosen,
        following=following,
    )


def is_well(actor: Mapping[str, Any]) -> bool:
    """Tell whether an actor and those below it are in a state that needs nobody."""
    return actor["state"] in _WELL and all(map(is_well, actor["children"]))


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one["name"] for one in nodes if one["state"] != "lost"]
