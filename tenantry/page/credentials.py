"""A tenant's credentials: given, rotated and revoked.

A password is shown only in the answer to the form that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from tenantry.page.asking import Viewer, admitted, let_in
from tenantry.page.pages import Pages, Visit

_ROTATE: Final = "POST /tenants/{tenant_id}/credentials/rotate"


class Grant(NamedTuple):
    """A form that makes a password: its call, the warning before it, the title after it."""

    call: str
    title: str
    warning: str
    done: str


GRANTS: Final[Mapping[str, Grant]] = {
    "/ui/tenants/{tenant_id}/rotate": Grant(
        call=_ROTATE,
        title="Rotate the credentials",
        warning="The password of the broker user that publishes for the tenant is good no more, "
        "and who publishes with it has to be given the new one, which is shown once.",
        done="The credentials are rotated",
    ),
    "/ui/tenants/{tenant_id}/consumer-access": Grant(
        call="POST /tenants/{tenant_id}/consumer-access",
        title="Give consumer access",
        warning="The tenant gets a broker user that reads copies of what is published from now "
        "on, and nothing else. Of one that it has already the password is replaced. It is shown "
        "once.",
        done="The tenant has consumer access",
    ),
    "/ui/tenants/{tenant_id}/sql-access": Grant(
        call="POST /tenants/{tenant_id}/sql-access",
        title="Give SQL access",
        warning="The tenant gets a database role that reads its own rows of messages, and nothing "
        "else. Of one that it has already the password is replaced. It is shown once.",
        done="The tenant has SQL access",
    ),
}
"""The grants, by the path of the form. `tenantry.page.actions` has the forms that revoke access."""

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/credentials")
async def show_credentials(visit: Visit) -> Response:
    """Show what a tenant has credentials for, and offer the other grants."""
    viewer = await admitted(visit.api, _ROTATE)
    tenant = let_in(await visit.api.get(f"/tenants/{visit.names['tenant_id']}")).body
    return visit.html("credentials.html", viewer, tenant=tenant, done=visit.done)


async def _grant(grant: Grant, visit: Visit) -> Response:
    """Ask for confirmation; then make a password, and show it."""
    tenant_id = visit.names["tenant_id"]
    viewer = await admitted(visit.api, grant.call)
    if visit.given.get("confirmed") != "yes":
        return visit.html(
            "confirm.html",
            viewer,
            title=grant.title,
            subject=tenant_id,
            warning=grant.warning,
            back=f"ui/tenants/{tenant_id}/credentials",
            kept={},
        )
    method, _, path = grant.call.partition(" ")
    made = let_in(await visit.api.call(method, path.replace("{tenant_id}", tenant_id))).body
    # A role's credentials are the answer itself, without its `tenant_id`; a broker user's are
    # the part `credentials` of it.
    found = made.get("credentials") or {name: made[name] for name in made if name != "tenant_id"}
    return with_password(visit, viewer, grant.done, tenant_id, found)


def with_password(
    visit: Visit, viewer: Viewer, title: str, tenant_id: str, credentials: Mapping[str, Any]
) -> Response:
    """Show new credentials, this once; none if they were shown before."""
    return visit.html(
        "password.html",
        viewer,
        title=title,
        tenant_id=tenant_id,
        credentials=[(name, value) for name, value in credentials.items() if value is not None],
    )


for _path, _one in GRANTS.items():
    pages["POST", _path] = partial(_grant, _one)
