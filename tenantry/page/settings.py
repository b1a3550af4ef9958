"""A tenant's topics and limits, as forms: topics are added, an emptied field lifts its limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from tenantry.domain.limits import DAY, RANGES, SHOWN
from tenantry.domain.topics import topics_in
from tenantry.page.actions import whole
from tenantry.page.asking import let_in, with_tenant
from tenantry.page.pages import Pages, Visit

_ADD_TOPICS: Final = "POST /tenants/{tenant_id}/topics"
_SET_LIMITS: Final = "PUT /tenants/{tenant_id}/limits"

CALLS: Final[Mapping[str, str]] = {
    "/ui/tenants/{tenant_id}/topics": _ADD_TOPICS,
    "/ui/tenants/{tenant_id}/limits": _SET_LIMITS,
}
"""The call of each form."""

TOLD: Final[Mapping[str, tuple[str, str]]] = {
    "weight": ("Weight", "share beside the others' while tenants compete; 1 where it is empty"),
    "rate": ("Rate", "messages stored a second"),
    "burst": ("Burst", "messages stored at once after a pause; a second's worth if empty"),
    "backlog_messages": ("Backlog, messages", "that may wait; publishing is refused beyond"),
    "backlog_bytes": ("Backlog, bytes", "that may wait; publishing is refused beyond"),
    "connections": ("Connections", "of its broker user"),
    "channels": ("Channels", "of its broker user"),
    "workers_min": ("Workers, least", "their number follows the load, and is never less"),
    "workers_max": ("Workers, most", "their number follows the load, and is never more"),
    "retention_seconds": ("Retention, age", "older messages are removed: 90s, 12h, 7d, 2w"),
    "retention_rows": ("Retention, rows", "beyond the newest so many, messages are removed"),
}
"""Each limit's title on the page, and the hint that explains it."""

_UNITS: Final = {"w": 7 * DAY, "d": DAY, "h": 60 * 60, "m": 60}
_MISTAKES: Final = frozenset({409, 422})

pages: Final = Pages()


class Field(NamedTuple):
    """A limit on the form; `was` is its value when the form was made."""

    name: str
    title: str
    hint: str
    range: tuple[int, int]
    value: str
    was: str

    @property
    def is_span(self) -> bool:
        """Whether it is a span of time with a unit, such as `7d`."""
        return self.name == SHOWN["retention_seconds"]


@pages("GET /ui/tenants/{tenant_id}/topics")
async def show_topics(visit: Visit) -> Response:
    """Show a tenant's topics, and the form that adds topics."""
    return await _topics_form(visit)


@pages("POST /ui/tenants/{tenant_id}/topics")
async def add_topics(visit: Visit) -> Response:
    """Add topics; the form shows what is wrong."""
    tenant_id = visit.names["tenant_id"]
    try:
        wanted = topics_in(visit.given.get("topics", ""))
    except ValueError as error:
        return await _topics_form(visit, 422, str(error))
    added = await visit.api.call("POST", f"/tenants/{tenant_id}/topics", body={"topics": wanted})
    if added.status in _MISTAKES:
        return await _topics_form(visit, added.status, added.problem)
    let_in(added)
    return visit.lead_to_saying(f"ui/tenants/{tenant_id}/topics", "The topics are there.")


async def _topics_form(visit: Visit, status: int = 200, problem: str = "") -> Response:
    viewer, tenant = await with_tenant(visit.api, visit.names["tenant_id"], _ADD_TOPICS)
    return visit.html(
        "topics.html",
        viewer,
        status,
        tenant=tenant,
        problem=problem,
        typed=visit.kept.get("topics", "") if problem else "",
        done=visit.done if status == 200 else "",
    )


@pages("GET /ui/tenants/{tenant_id}/limits")
async def show_limits(visit: Visit) -> Response:
    """Show the form with a tenant's limits."""
    return await _limits_form(visit)


@pages("POST /ui/tenants/{tenant_id}/limits")
async def change_limits(visit: Visit) -> Response:
    """Change the limits that were changed on the form; the form shows what is wrong."""
    tenant_id = visit.names["tenant_id"]
    changed = await visit.api.call("PUT", f"/tenants/{tenant_id}/limits", body=changes(visit.given))
    if changed.status in _MISTAKES:
        return await _limits_form(visit, changed.status, changed.problem, visit.kept)
    let_in(changed)
    return visit.lead_to_saying(f"ui/tenants/{tenant_id}/limits", "The limits are in force.")


async def _limits_form(
    visit: Visit, status: int = 200, problem: str = "", typed: Mapping[str, str] | None = None
) -> Response:
    viewer, tenant = await with_tenant(visit.api, visit.names["tenant_id"], _SET_LIMITS)
    return visit.html(
        "limits.html",
        viewer,
        status,
        tenant_id=tenant["id"],
        fields=[_field(one, tenant["limits"], typed or {}) for one in TOLD],
        problem=problem,
        done=visit.done if status == 200 else "",
    )


def _field(limit: str, limits: Mapping[str, Any], typed: Mapping[str, str]) -> Field:
    title, hint = TOLD[limit]
    name = SHOWN.get(limit, limit)
    group, _, part = name.partition(".")
    found = (limits[group] or {}).get(part) if part else limits[group]
    now = "" if found is None else span(found) if limit == "retention_seconds" else str(found)
    return Field(
        name, title, hint, RANGES[limit], typed.get(name, now), typed.get(f"was-{name}", now)
    )


def changes(given: Mapping[str, str]) -> dict[str, Any]:
    """Read the fields changed on the form, in the API's form: null lifts a limit.

    Fields left as they were are left out: another viewer may have changed those limits meanwhile.
    """
    found: dict[str, Any] = {}
    for limit in TOLD:
        name = SHOWN.get(limit, limit)
        text, was = (given.get(one, "").strip() for one in (name, f"was-{name}"))
        if text == was:
            continue
        value = whole(text) if text else None
        group, _, part = name.partition(".")
        if part:
            found.setdefault(group, {})[part] = value
        else:
            found[group] = value
    return found


def span(seconds: int) -> str:
    """Write a span of time in the largest unit that divides it: `7d`, say."""
    for unit, length in _UNITS.items():
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
