"""The actions of the page's forms: each is one API call, made in the viewer's name.

A password is shown only in the answer to the form that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.responses import Response

from tenantry.page.asking import Viewer, admitted, let_in
from tenantry.page.pages import Pages, Visit

_LONGEST_NUMBER: Final = 18

_ROTATE: Final = "POST /tenants/{tenant_id}/credentials/rotate"
_CREDENTIALS: Final = "ui/tenants/{tenant_id}/credentials"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A form: the API call it makes, and the page it leads `to` afterwards.

    The names in its path fill in `call` and `to`; `body` makes the request body from its fields.
    `done` is the sentence shown on that page. A form with a `warning` asks for confirmation first.
    """

    call: str
    to: str
    title: str
    done: str
    body: Callable[[Mapping[str, str]], Any] = lambda _: None
    warning: str = ""


ACTIONS: Final[Mapping[str, Action]] = {
    "/ui/tenants/{tenant_id}/pause": Action(
        call="POST /tenants/{tenant_id}/pause",
        to="ui/tenants/{tenant_id}",
        title="Pause",
        done="The tenant is paused: its messages wait in their queues.",
    ),
    "/ui/tenants/{tenant_id}/resume": Action(
        call="POST /tenants/{tenant_id}/resume",
        to="ui/tenants/{tenant_id}",
        title="Resume",
        done="The tenant consumes again.",
    ),
    "/ui/tenants/{tenant_id}/resize": Action(
        call="PUT /tenants/{tenant_id}/config/concurrency",
        to="ui/tenants/{tenant_id}",
        title="Resize",
        done="The number of workers is in force.",
        body=lambda given: {"workers": whole(given.get("workers", ""))},
    ),
    "/ui/tenants/{tenant_id}/move": Action(
        call="POST /tenants/{tenant_id}/move",
        to="ui/tenants/{tenant_id}",
        title="Move",
        done="The tenant is wanted there.",
        body=lambda given: {"node": given.get("node") or None},
    ),
    "/ui/tenants/{tenant_id}/consumer-access/revoke": Action(
        call="DELETE /tenants/{tenant_id}/consumer-access",
        to=_CREDENTIALS,
        title="Revoke the consumer access",
        done="The tenant has no consumer access.",
        warning="The broker user that reads the tenant's topics is deleted, with what waits for "
        "it. What is stored stays.",
    ),
    "/ui/tenants/{tenant_id}/sql-access/revoke": Action(
        call="DELETE /tenants/{tenant_id}/sql-access",
        to=_CREDENTIALS,
        title="Revoke the SQL access",
        done="The tenant has no SQL access.",
        warning="The sessions of the tenant's database role are ended, and the role is dropped.",
    ),
    "/ui/nodes/{node}/drain": Action(
        call="POST /nodes/{node}/drain",
        to="ui/nodes",
        title="Drain the node",
        done="The node is being emptied: its tenants are handed over one by one.",
        warning="All its tenants are handed over to the other nodes, and it takes none until it is "
        "undrained.",
    ),
    "/ui/nodes/{node}/undrain": Action(
        call="POST /nodes/{node}/undrain",
        to="ui/nodes",
        title="Undrain",
        done="The node gets its share of the tenants again.",
    ),
}
"""The actions, by the path of the form."""

pages: Final = Pages()


def whole(text: str) -> int | str:
    """Read a whole number; any other text is returned as it is, for the API's check to refuse."""
    digits = text.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) <= _LONGEST_NUMBER:
        return int(text)
    return text


async def act(action: Action, visit: Visit) -> Response:
    """Do what a form asks for, after a confirmation where it has a warning, and redirect."""
    to = _filled(action.to, visit)
    if action.warning and visit.given.get("confirmed") != "yes":
        return _confirm(action, visit, await admitted(visit.api, action.call), visit.kept)
    method, _, template = action.call.partition(" ")
    answer = await visit.api.call(method, _filled(template, visit), body=action.body(visit.given))
    let_in(answer)
    return visit.lead_to_saying(to, action.done)


def _confirm(action: Action, visit: Visit, viewer: Viewer, kept: Mapping[str, str]) -> Response:
    return visit.html(
        "confirm.html",
        viewer,
        title=action.title,
        subject=", ".join(visit.names.values()),
        warning=action.warning,
        back=_filled(action.to, visit),
        kept=kept,
    )


def _filled(template: str, visit: Visit) -> str:
    for name, value in visit.names.items():
        template = template.replace(f"{{{name}}}", value)
    return template


for _path, _action in ACTIONS.items():
    pages[("POST", _path)] = partial(act, _action)


GRANTS: Final[Mapping[str, Action]] = {
    "/ui/tenants/{tenant_id}/rotate": Action(
        call=_ROTATE,
        to=_CREDENTIALS,
        title="Rotate the credentials",
        warning="The password of the broker user that publishes for the tenant is good no more, "
        "and who publishes with it has to be given the new one, which is shown once.",
        done="The credentials are rotated",
    ),
    "/ui/tenants/{tenant_id}/consumer-access": Action(
        call="POST /tenants/{tenant_id}/consumer-access",
        to=_CREDENTIALS,
        title="Give consumer access",
        warning="The tenant gets a broker user that reads copies of what is published from now "
        "on, and nothing else. Of one that it has already the password is replaced. It is shown "
        "once.",
        done="The tenant has consumer access",
    ),
    "/ui/tenants/{tenant_id}/sql-access": Action(
        call="POST /tenants/{tenant_id}/sql-access",
        to=_CREDENTIALS,
        title="Give SQL access",
        warning="The tenant gets a database role that reads its own rows of messages, and nothing "
        "else. Of one that it has already the password is replaced. It is shown once.",
        done="The tenant has SQL access",
    ),
}
"""The forms that make a password, by their paths."""


@pages("GET /ui/tenants/{tenant_id}/credentials")
async def show_credentials(visit: Visit) -> Response:
    """Show what a tenant has credentials for, and offer the other grants."""
    viewer = await admitted(visit.api, _ROTATE)
    tenant = let_in(await visit.api.get(f"/tenants/{visit.names['tenant_id']}")).body
    return visit.html("credentials.html", viewer, tenant=tenant, done=visit.done)


async def _grant(grant: Action, visit: Visit) -> Response:
    """Ask for confirmation; then make a password, and show it."""
    tenant_id = visit.names["tenant_id"]
    viewer = await admitted(visit.api, grant.call)
    if visit.given.get("confirmed") != "yes":
        return _confirm(grant, visit, viewer, {})
    method, _, template = grant.call.partition(" ")
    made = let_in(await visit.api.call(method, _filled(template, visit))).body
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
