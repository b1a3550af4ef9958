"""A form that publishes a test message, and then links to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from tenantry import exact
from tenantry.domain.names import DEFAULT_TOPIC
from tenantry.http.problems import Problem
from tenantry.page.asking import Viewer, let_in, with_tenant
from tenantry.page.pages import Pages, Visit

_CALL: Final = "POST /tenants/{tenant_id}/messages"

CALLS: Final[Mapping[str, str]] = {"/ui/tenants/{tenant_id}/publish": _CALL}
"""The call of the form."""

_REFUSED: Final = frozenset({400, 404, 409, 422, 429, 503, 504})
"""Statuses after which the form is shown again, to be corrected or sent again as it stands."""

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/publish")
async def ask_for_message(visit: Visit) -> Response:
    """Show the form: what to publish, and where."""
    viewer, tenant = await with_tenant(visit.api, visit.names["tenant_id"], _CALL)
    return _form(visit, viewer, tenant)


@pages("POST /ui/tenants/{tenant_id}/publish")
async def publish(visit: Visit) -> Response:
    """Publish a message, and show the result beside the form as it was filled in."""
    viewer, tenant = await with_tenant(visit.api, visit.names["tenant_id"], _CALL)
    try:
        wanted = publication(visit.given)
    except ValueError as error:
        return _form(visit, viewer, tenant, Problem(422, str(error)))
    sent = await visit.api.call("POST", f"/tenants/{tenant['id']}/messages", body=wanted)
    if sent.status in _REFUSED:
        return _form(visit, viewer, tenant, Problem(sent.status, sent.problem))
    return _form(visit, viewer, tenant, sent=let_in(sent).body["ids"][0])


def _form(
    visit: Visit,
    viewer: Viewer,
    tenant: Any,
    problem: Problem | None = None,
    sent: str | None = None,
) -> Response:
    return visit.html(
        "publish.html",
        viewer,
        200 if problem is None else problem.status,
        tenant_id=tenant["id"],
        topics=[DEFAULT_TOPIC, *tenant["topics"]],
        kept={} if problem is None and sent is None else visit.kept,
        cut=len(visit.kept) < len(visit.given),
        problem=problem,
        sent=sent,
        link=None if sent is None else "message?" + urlencode({"id": sent}),
    )


def publication(given: Mapping[str, str]) -> dict[str, Any]:
    """Read a message in the API's form, its JSON to the last digit. Raises `ValueError`.

    A browser sends the ends of lines as CR LF; they are turned back into LF.
    """
    text = given.get("payload", "").replace("\r\n", "\n")
    wanted = {name: given[name] for name in ("topic", "key", "id") if given.get(name)}
    if given.get("kind") == "text":
        return {"payload": text, **wanted}
    try:
        exact.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the payload is no JSON: {error}; choose text for what is none") from None
    return {"payload": orjson.Fragment(text), **wanted}
