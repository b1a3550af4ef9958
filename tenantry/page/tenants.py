"""One tenant's pages: its present state, its last day, and its past states."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry.http.problems import Problem
from tenantry.page.asking import Answer, Viewer, let_in
from tenantry.page.pages import Pages, Visit
from tenantry.page.rendering import UNKNOWN, clipped, number, rate

EVENTS: Final = 50
"""Events on a page."""

STEPS: Final = 1000
"""Steps of the slider."""

WIDTH: Final = 600
HEIGHT: Final = 120
"""The box that figures over time are drawn in."""

_WINDOW: Final = "24h"
_PASSING: Final = frozenset(
    {"messages_pending", "workers_current", "rate", "dead_lettered", "node", "epoch", "trouble"}
)
"""Fields of a tenant that are known for the present only."""

pages: Final = Pages()

_TO_THE_MINUTE: Final = 16
_TO_THE_SECOND: Final = 19


@pages("GET /ui/tenants/{tenant_id}")
async def show_tenant(visit: Visit) -> Response:
    """Show a tenant's present state, its last day, and the actions on it."""
    path = f"/tenants/{visit.names['tenant_id']}"
    who, tenant, day = await asyncio.gather(
        visit.api.get("/whoami"),
        visit.api.get(path),
        visit.api.get(f"{path}/stats", window=_WINDOW),
    )
    viewer = Viewer.of(let_in(who).body)
    shown = let_in(tenant).body
    nodes: list[str] = []
    if viewer.may("POST /tenants/{tenant_id}/move"):
        nodes = [one["name"] for one in (await visit.api.get("/nodes")).items()]
    return visit.html(
        "tenant.html",
        viewer,
        tenant=shown,
        figures=_figures(shown),
        limits=list(flat(shown["limits"])),
        nodes=nodes,
        day=day,
        charts=_charts(day),
        done=visit.done,
    )


@pages("GET /ui/tenants/{tenant_id}/figures")
async def show_figures(visit: Visit) -> Response:
    """Return a tenant's current figures."""
    tenant = await visit.api.get(f"/tenants/{visit.names['tenant_id']}")
    return visit.json(_figures(let_in(tenant).body))


def _figures(tenant: Mapping[str, Any]) -> dict[str, str]:
    return {
        "workers": f"{number(tenant['workers_current'])} of {tenant['workers']}",
        "rate": rate(tenant["rate"]),
        "pending": number(tenant["messages_pending"]),
        "dead_lettered": number(tenant["dead_lettered"]),
        "node": tenant["node"] or UNKNOWN,
    }


@pages("GET /ui/tenants/{tenant_id}/journal")
async def show_journal(visit: Visit) -> Response:
    """Show a tenant's events, its state at one moment, and how that differs from another."""
    path = f"/tenants/{visit.names['tenant_id']}"
    who, tenant, events = await asyncio.gather(
        visit.api.get("/whoami"),
        visit.api.get(path),
        visit.api.get(f"{path}/events", limit=EVENTS, cursor=visit.given.get("cursor")),
    )
    viewer = Viewer.of(let_in(who).body)
    let_in(events)
    now = str(tenant.body["version"]) if tenant.well else ""
    given = {name: in_utc(visit.given.get(name, "").strip()) for name in ("at", "against")}
    then, other = await asyncio.gather(
        *(_moment(visit, path, given[name] or now) for name in ("at", "against"))
    )
    following = None
    if len(events.body["data"]) == EVENTS:
        chosen = {name: value for name, value in given.items() if value}
        following = "journal?" + urlencode({**chosen, "cursor": events.body["next_cursor"]})
    return visit.html(
        "journal.html",
        viewer,
        tenant_id=visit.names["tenant_id"],
        stream=f"tenant-{visit.names['tenant_id']}",
        now=now,
        then=then,
        other=other,
        span=_life(tenant.body["created_at"]) if tenant.well else None,
        rows=differences(then.tenant, other.tenant),
        events=[{**one, "told": list(flat(one["data"]))} for one in events.body["data"]],
        following=following,
        archived=events.body.get("archived"),
    )


async def _moment(visit: Visit, path: str, asked: str) -> Moment:
    if not asked:
        return Moment("", {})
    answer = await visit.api.get(path, at=asked)
    if answer.status in {410, 422}:  # its events are archived; this is no moment
        raise Problem(answer.status, answer.problem)
    return Moment(asked, answer.body if answer.well else {})


def _life(created_at: str) -> range:
    """Return the seconds since 1970 from a tenant's creation till now, in the slider's steps."""
    began, now = seconds(created_at), int(time.time())
    return range(began, now + 1, max(1, (now - began) // STEPS))


class Moment(NamedTuple):
    """A moment, as the API is asked for it, and the tenant's state then; empty if there was none.

    The empty text stands for no moment.
    """

    asked: str
    tenant: Mapping[str, Any]

    @property
    def is_version(self) -> bool:
        """Whether the moment is a version rather than a time."""
        return self.asked.isdecimal()

    @property
    def title(self) -> str:
        """The moment's title on the page."""
        if not self.asked:
            return UNKNOWN
        if self.is_version:
            return f"version {self.asked}"
        version = self.tenant.get("version")
        then = "no such tenant" if version is None else f"version {version}"
        return f"{_told(self.asked)}, {then}"

    @property
    def typed(self) -> str:
        """The text of the form's field for a time."""
        return "" if self.is_version else self.asked[:_TO_THE_SECOND]


def in_utc(text: str) -> str:
    """Add the zone, UTC, to a time from a browser's time field, and seconds if it has none."""
    if text[10:11] == "T" and len(text) in {_TO_THE_MINUTE, _TO_THE_SECOND}:
        return f"{text}:00Z" if len(text) == _TO_THE_MINUTE else f"{text}Z"
    return text


def seconds(written: str) -> int:
    """Return a time of the API in seconds since 1970."""
    return int(datetime.fromisoformat(written).timestamp())


def _told(asked: str) -> str:
    try:
        at = datetime.fromisoformat(asked).astimezone(UTC)
    except (ValueError, OverflowError):
        return clipped(asked)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


class Difference(NamedTuple):
    """A field of a tenant at two moments."""

    name: str
    then: str
    other: str

    @property
    def differs(self) -> bool:
        """Whether the two values differ."""
        return self.then != self.other


def differences(then: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """Compare a tenant at two moments, field by field."""
    left, right = dict(flat(then)), dict(flat(other))
    names = [*left, *(name for name in right if name not in left)]
    return [
        Difference(name, left.get(name, ""), right.get(name, ""))
        for name in names
        if name not in _PASSING
    ]


def flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields of an object, and of objects in it, as text; null fields are left out."""
    for name, one in value.items():
        if isinstance(one, Mapping):
            yield from flat(one, f"{before}{name}.")
        elif isinstance(one, list):
            yield f"{before}{name}", ", ".join(_text(part) for part in one)
        elif one is not None:
            yield f"{before}{name}", _text(one)


def _text(value: object) -> str:
    match value:
        case Mapping():
            return " ".join(f"{name}={text}" for name, text in flat(value))
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
    return str(value)


def _charts(day: Answer) -> list[Chart]:
    if not day.well:
        return []
    points = day.body["points"]
    return [
        chart("Stored", "messages a second", [one["rate"] for one in points]),
        chart("Waiting", "messages", [one["backlog"] for one in points]),
        chart("Latency, 99 of 100", "ms", [one["latency_p99_ms"] for one in points]),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart: `lines` are SVG points in a box of `WIDTH` by `HEIGHT`; `most` is the box's top."""

    title: str
    unit: str
    most: float
    lines: Sequence[str]
    dots: Sequence[str]
    """Points without a neighbour, each drawn as a line from the point to itself."""


def chart(title: str, unit: str, values: Sequence[float | None]) -> Chart:
    """Draw values at equal intervals of time; None is a gap."""
    most = max((value for value in values if value is not None), default=0.0)
    step = WIDTH / max(1, len(values) - 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            height = HEIGHT - HEIGHT * value / most if most else HEIGHT
            runs[-1].append(f"{place * step:.1f},{height:.1f}")
    return Chart(
        title=title,
        unit=unit,
        most=most,
        lines=[" ".join(run) for run in runs if len(run) > 1],
        dots=[f"{run[0]} {run[0]}" for run in runs if len(run) == 1],
    )
