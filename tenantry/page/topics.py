"""A tenant's topics, and a form that adds topics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from tenantry.api.topics import topics_in
from tenantry.page.pages import Pages, Visit
from tenantry.page.viewing import Viewer, let_in

_CALL: Final = "POST /tenants/{tenant_id}/topics"

CALLS: Final[Mapping[str, str]] = {"/ui/tenants/{tenant_id}/topics": _CALL}
"""The call of the form."""

_MISTAKES: Final = frozenset({409, 422})

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/topics")
async def show_topics(visit: Visit) -> Response:
    """Show a tenant's topics, and the form that adds topics."""
    return await _form(visit)


@pages("POST /ui/tenants/{tenant_id}/topics")
async def add_topics(visit: Visit) -> Response:
    """Add topics; the form shows what is wrong."""
    tenant_id = visit.names["tenant_id"]
    try:
        wanted = topics_in(visit.given.get("topics", ""))
    except ValueError as error:
        return await _form(visit, 422, str(error))
    added = await visit.api.call("POST", f"/tenants/{tenant_id}/topics", body={"topics": wanted})
    if added.status in _MISTAKES:
        return await _form(visit, added.status, added.problem)
    let_in(added)
    return visit.lead_to_saying(f"ui/tenants/{tenant_id}/topics", "The topics are there.")


async def _form(visit: Visit, status: int = 200, problem: str = "") -> Response:
    who, tenant = await asyncio.gather(
        visit.api.get("/whoami"), visit.api.get(f"/tenants/{visit.names['tenant_id']}")
    )
    viewer, shown = Viewer.of(let_in(who).body), let_in(tenant).body
    viewer.must(_CALL)
    return visit.html(
        "topics.html",
        viewer,
        status,
        tenant=shown,
        problem=problem,
        typed=visit.kept.get("topics", "") if problem else "",
        done=visit.done if status == 200 else "",
    )
