"""A tenant's audit and its proof of isolation, each run when a viewer asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from tenantry.page.asking import Viewer, admitted, let_in
from tenantry.page.pages import Pages, Visit

MOST: Final = 10
"""Findings of each kind that the page lists."""

_AUDIT: Final = "GET /tenants/{tenant_id}/audit"
_PROOF: Final = "POST /isolation"

CALLS: Final[Mapping[str, str]] = {
    "/ui/tenants/{tenant_id}/audit": _AUDIT,
    "/ui/tenants/{tenant_id}/isolation": _PROOF,
}
"""The call of each form."""

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/checks")
async def offer_checks(visit: Visit) -> Response:
    """Offer an audit and a proof of isolation; 404 for an unknown tenant."""
    viewer = await admitted(visit.api, _AUDIT)
    let_in(await visit.api.get(f"/tenants/{visit.names['tenant_id']}"))
    return _shown(visit, viewer)


@pages("POST /ui/tenants/{tenant_id}/audit")
async def audit(visit: Visit) -> Response:
    """Audit a tenant, and show what was found."""
    viewer = await admitted(visit.api, _AUDIT)
    found = await visit.api.get(f"/tenants/{visit.names['tenant_id']}/audit")
    return _shown(visit, viewer, audit=let_in(found).body)


@pages("POST /ui/tenants/{tenant_id}/isolation")
async def prove_isolation(visit: Visit) -> Response:
    """Try whether a tenant can reach other tenants' resources, and show what was found."""
    viewer = await admitted(visit.api, _PROOF)
    wanted = {"tenants": [visit.names["tenant_id"]]}
    found = await visit.api.call("POST", "/isolation", body=wanted)
    return _shown(visit, viewer, proof=let_in(found).body)


def _shown(visit: Visit, viewer: Viewer, *, audit: Any = None, proof: Any = None) -> Response:
    return visit.html(
        "checks.html",
        viewer,
        tenant_id=visit.names["tenant_id"],
        audit=audit,
        proof=proof,
        held=0 if proof is None else sum(one["holds"] for one in proof["checks"]),
        others=0
        if proof is None
        else len({one["owner"] for one in proof["checks"]} - {visit.names["tenant_id"]}),
        most=MOST,
    )
