"""Forms that create a tenant, and delete one for good."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from tenantry.domain.tenant import MAX_NAME, MAX_PARTITIONS, MIN_PARTITIONS
from tenantry.domain.topics import topics_in
from tenantry.http.problems import Problem
from tenantry.page.actions import whole, with_password
from tenantry.page.asking import Viewer, admitted, let_in
from tenantry.page.pages import Pages, Visit

_CREATE: Final = "POST /tenants"
_DELETE: Final = "DELETE /tenants/{tenant_id}"

CALLS: Final[Mapping[str, str]] = {
    "/ui/new-tenant": _CREATE,
    "/ui/tenants/{tenant_id}/delete": _DELETE,
}
"""The call of each form."""

_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_REFUSED: Final = frozenset({404, 409, 422, 503, 504})
"""Statuses after which the form is shown again, to be corrected or sent again as it stands."""

pages: Final = Pages()


@pages("GET /ui/new-tenant")
async def ask_for_tenant(visit: Visit) -> Response:
    """Show the form for a new tenant."""
    return _asked(visit, await admitted(visit.api, _CREATE))


@pages("POST /ui/new-tenant")
async def create_tenant(visit: Visit) -> Response:
    """Create a tenant, and show its credentials. The form's key makes a repeated send harmless."""
    viewer = await admitted(visit.api, _CREATE)
    try:
        wanted = _wanted(visit.given)
    except ValueError as error:
        return _asked(visit, viewer, Problem(422, str(error)))
    given = visit.given.get("key", "")
    key = given if _KEY.fullmatch(given) else secrets.token_urlsafe()
    made = await visit.api.call("POST", "/tenants", body=wanted, key=key)
    if made.status in _REFUSED:
        # The tenant may have been created nevertheless: with the same key, a repetition finds it.
        again = key if made.status >= 500 else None
        return _asked(visit, viewer, Problem(made.status, made.problem), again)
    tenant = let_in(made).body
    credentials = tenant.get("credentials") or {}
    return with_password(visit, viewer, "The tenant is created", tenant["id"], credentials)


def _asked(
    visit: Visit, viewer: Viewer, problem: Problem | None = None, key: str | None = None
) -> Response:
    return visit.html(
        "new_tenant.html",
        viewer,
        200 if problem is None else problem.status,
        kept={} if problem is None else visit.kept,
        key=key or secrets.token_urlsafe(),
        problem=problem,
        longest_name=MAX_NAME,
        partitions=(MIN_PARTITIONS, MAX_PARTITIONS),
    )


def _wanted(given: Mapping[str, str]) -> dict[str, Any]:
    """Read the wanted tenant from the form; empty fields are left out. Raises `ValueError`."""
    texts = {name: given.get(name, "").strip() for name in ("id", "workers", "partitions")}
    wanted: dict[str, Any] = {
        "name": given.get("name", "").strip(),
        "topics": topics_in(given.get("topics", "")),
    }
    for name, text in texts.items():
        if text:
            wanted[name] = text if name == "id" else whole(text)
    return wanted


@pages("POST /ui/tenants/{tenant_id}/delete")
async def delete_tenant(visit: Visit) -> Response:
    """Ask for the tenant's id to be typed; then delete it."""
    tenant_id = visit.names["tenant_id"]
    viewer = await admitted(visit.api, _DELETE)
    typed, retain = visit.given.get("typed"), visit.given.get("retain") == "yes"
    if typed is None or typed.strip() != tenant_id:
        tenant = let_in(await visit.api.get(f"/tenants/{tenant_id}")).body
        return visit.html(
            "delete.html",
            viewer,
            200 if typed is None else 422,
            tenant=tenant,
            wrong=typed is not None,
            retain=retain,
        )
    params = {"retain": "true"} if retain else None
    let_in(await visit.api.call("DELETE", f"/tenants/{tenant_id}", params=params))
    kept = "; its messages are kept" if retain else ""
    return visit.lead_to_saying("ui", f"Tenant {tenant_id} is deleted{kept}.")
