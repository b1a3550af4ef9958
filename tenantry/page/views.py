"""The overview of all tenants, and the static files."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry.http.problems import Problem
from tenantry.page import rendering
from tenantry.page.asking import Answer, Viewer, let_in, let_in_or_ask_again
from tenantry.page.pages import Pages, Visit

ROWS: Final = 50
"""Tenants on a page."""

NODES: Final = 40
"""Nodes on the overview."""

_COLUMNS: Final = {
    "id": "Tenant",
    "name": "Name",
    "state": "State",
    "rate": "Messages/s",
    "pending": "Waiting",
    "dead_lettered": "Dead-lettered",
}
_GREATEST_FIRST: Final = frozenset({"rate", "pending", "dead_lettered"})

pages: Final = Pages()


@pages("GET /ui/static/{name}")
async def show_file(visit: Visit) -> Response:
    """Return a static file."""
    return rendering.file(visit.names["name"])


@pages("GET /ui/")
async def lead_to_overview(visit: Visit) -> Response:
    """Redirect to the overview from an address with a slash too many."""
    return visit.lead_to("ui")


@pages("GET /ui")
async def show_overview(visit: Visit) -> Response:
    """Show the state of the whole system, and the tenants."""
    query = _list_query(visit)
    # Before all else: for an unknown viewer, nothing more is asked of the API.
    viewer = Viewer.of(let_in_or_ask_again(visit.api, await visit.api.get("/whoami")).body)
    if viewer.is_tenant:
        return visit.lead_to(f"ui/tenants/{viewer.tenant_id}")
    ready, nodes, totals, tenants = await asyncio.gather(
        visit.api.get("/readyz"),
        visit.api.get("/nodes"),
        visit.api.get("/overview"),
        visit.api.get("/tenants", **query),
    )
    if tenants.status in {400, 422}:  # the viewer has made a parameter up
        raise Problem(tenants.status, tenants.problem)
    return visit.html(
        "overview.html",
        viewer,
        here="ui",
        done=visit.done,
        ready=ready,
        nodes=nodes,
        most_nodes=NODES,
        totals=totals,
        figures=_figures(totals.body) if totals.well else {},
        tenants=tenants,
        query=query,
        columns=[_column(name, title, query) for name, title in _COLUMNS.items()],
        first=_list_link(query["search"], query["sort"]),
        following=_following(tenants, query),
    )


@pages("GET /ui/figures")
async def show_figures(visit: Visit) -> Response:
    """Return the current figures of all tenants."""
    return visit.json(_figures(let_in(await visit.api.get("/overview")).body))


def _figures(totals: dict[str, Any]) -> dict[str, str]:
    counts = ("tenants", "pending", "unsettled", "stored", "duplicates", "dead_letters", "troubled")
    figures = {name: rendering.number(totals[name]) for name in counts}
    return figures | {"rate": rendering.rate(totals["rate"])}


def _list_query(visit: Visit) -> dict[str, Any]:
    return {
        "search": visit.given.get("search", ""),
        "sort": visit.given.get("sort") or "id",
        "cursor": visit.given.get("cursor"),
        "limit": ROWS,
    }


def _column(name: str, title: str, query: dict[str, Any]) -> dict[str, Any]:
    """Describe a column: how the list is sorted by it, and what a click on its head asks for."""
    ascending, descending = name, f"-{name}"
    first, other = (descending, ascending) if name in _GREATEST_FIRST else (ascending, descending)
    wanted = other if query["sort"] == first else first
    sorted_ = {ascending: "ascending", descending: "descending"}.get(query["sort"], "")
    return {
        "title": title,
        "number": name in _GREATEST_FIRST,
        "sorted": sorted_,
        "wanted": query["sort"] if sorted_ else first,
        "link": _list_link(query["search"], wanted),
    }


def _list_link(search: str, sort: str, **more: str) -> str:
    return "ui?" + urlencode({"search": search, "sort": sort, **more})


def _following(tenants: Answer, query: dict[str, Any]) -> str | None:
    cursor = tenants.body["next_cursor"] if tenants.well else None
    if cursor is None:
        return None
    return _list_link(query["search"], query["sort"], cursor=cursor)
