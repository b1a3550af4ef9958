"""The nodes, and the tree of actors of each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry.page.actions import whole
from tenantry.page.asking import Viewer, let_in
from tenantry.page.pages import Pages, Visit
from tenantry.page.rendering import clipped, size

NODES: Final = 80
"""Nodes on a page."""

ROWS: Final = 40
"""Most actors right below the supervisor on a page, each shown with its children."""

BELOW: Final = 12
"""Children of an actor that are shown."""

NAME: Final = 80
"""Characters of an actor's name that are shown."""

TREE_BYTES: Final = 64_000
"""Bytes of a page that its actors may take."""

_BYTES_AROUND: Final = 190
"""Most bytes that are written around an actor's name."""

_WELL: Final = frozenset(
    {"active", "busy", "consuming", "idle", "paused", "running", "waiting", "watching"}
)

pages: Final = Pages()


@pages("GET /ui/nodes")
async def show_nodes(visit: Visit) -> Response:
    """List the nodes; viewers with the right to drain a node are offered that."""
    who, nodes = await asyncio.gather(visit.api.get("/whoami"), visit.api.get("/nodes"))
    viewer = Viewer.of(let_in(who).body)
    listed = let_in(nodes).body["data"]
    begin = _begin(visit)
    following = None
    if len(listed) > begin + NODES:
        following = "nodes?" + urlencode({"begin": begin + NODES})
    return visit.html(
        "nodes.html",
        viewer,
        here="ui/nodes",
        listed=listed[begin : begin + NODES],
        following=following,
        done=visit.done,
    )


def _begin(visit: Visit) -> int:
    begin = whole(visit.given.get("begin", "0"))
    return begin if isinstance(begin, int) and begin > 0 else 0


@pages("GET /ui/actors")
async def show_actors(visit: Visit) -> Response:
    """Show a node's tree of actors, each with its state, mailbox and restarts."""
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
    begin = _begin(visit)
    there = _fitting(found[begin : begin + ROWS])
    chosen = {"node": node or "", "search": search, "unwell": "yes" if unwell else ""}
    following = None
    if len(found) > begin + len(there):
        following = "actors?" + urlencode({**chosen, "begin": begin + len(there)})
    return visit.html(
        "actors.html",
        viewer,
        here="ui/actors",
        system=system,
        tree={**system["tree"], "children": there},
        most_below=BELOW,
        name_length=NAME,
        count=len(found),
        nodes=_names(system["nodes"]),
        chosen=chosen,
        following=following,
    )


def _fitting(actors: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the first actors, as many as fit on a page with their children; at least one."""
    left = TREE_BYTES
    for number, one in enumerate(actors):
        left -= _size(one)
        if left < 0:
            return actors[: max(1, number)]
    return actors


def _size(actor: Mapping[str, Any]) -> int:
    own = _BYTES_AROUND + size(clipped(actor["name"], NAME))
    return own + sum(map(_size, actor["children"][:BELOW]))


def is_well(actor: Mapping[str, Any]) -> bool:
    """Tell whether an actor and all below it are in a state that needs no attention."""
    return actor["state"] in _WELL and all(map(is_well, actor["children"]))


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one["name"] for one in nodes if one["state"] != "lost"]
