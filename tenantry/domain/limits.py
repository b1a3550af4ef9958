"""A tenant's limits: its share of common resources, and how long its stored messages are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final

from tenantry.domain.commands import InvalidCommandError

MIN_WORKERS: Final = 1
MAX_WORKERS: Final = 64

DEFAULT_WEIGHT: Final = 1

OF_THE_BROKER: Final = ("backlog_messages", "backlog_bytes", "connections", "channels")
"""The limits that a broker enforces, if it can."""

DAY: Final = 24 * 60 * 60

RANGES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "weight": (1, 1000),
        "rate": (1, 1_000_000),
        "burst": (1, 10_000_000),
        "backlog_messages": (1, 10**12),
        "backlog_bytes": (1, 10**15),
        "connections": (1, 65_535),
        "channels": (1, 65_535),
        "workers_min": (MIN_WORKERS, MAX_WORKERS),
        "workers_max": (MIN_WORKERS, MAX_WORKERS),
        "retention_seconds": (1, 100 * 365 * DAY),
        "retention_rows": (1, 10**15),
    }
)
"""The least and the most of each limit."""

SHOWN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "backlog_messages": "backlog.messages",
        "backlog_bytes": "backlog.bytes",
        "retention_seconds": "retention.age",
        "retention_rows": "retention.rows",
    }
)
"""The API's names of limits, where they differ from the names here."""

_UNITS: Final[Mapping[str, int]] = MappingProxyType(
    {"s": 1, "m": 60, "h": 60 * 60, "d": DAY, "w": 7 * DAY}
)
_SPAN: Final = re.compile(r"(\d{1,12})\s*([smhdw])", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one tenant; None means no limit.

    `weight` is its share, relative to others', of workers' and the database's time while tenants
    compete. `rate` is how many messages are stored a second at most, `burst` how many at once
    after a pause: a second's worth if it is None. `backlog_messages` and `backlog_bytes` limit
    what may wait in its queues, `connections` and `channels` what its broker user may open.
    Between `workers_min` and `workers_max` the number of its workers follows the load; it is fixed
    where both are None. Stored messages older than `retention_seconds`, or beyond the newest
    `retention_rows`, are removed.
    """

    weight: int = DEFAULT_WEIGHT
    rate: int | None = None
    burst: int | None = None
    backlog_messages: int | None = None
    backlog_bytes: int | None = None
    connections: int | None = None
    channels: int | None = None
    workers_min: int | None = None
    workers_max: int | None = None
    retention_seconds: int | None = None
    retention_rows: int | None = None

    @property
    def has_backlog(self) -> bool:
        """Whether the backlog is limited."""
        return self.backlog_messages is not None or self.backlog_bytes is not None

    @property
    def of_the_broker(self) -> Mapping[str, int]:
        """The set limits among those that a broker enforces."""
        found = {name: getattr(self, name) for name in OF_THE_BROKER}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def autoscaled(self) -> bool:
        """Whether the number of workers follows the load."""
        return self.workers_min is not None or self.workers_max is not None

    @property
    def workers(self) -> range:
        """The allowed numbers of workers."""
        return range(self.workers_min or MIN_WORKERS, (self.workers_max or MAX_WORKERS) + 1)

    def within(self, workers: int) -> int:
        """Return the allowed number of workers that is nearest to `workers`."""
        return min(max(workers, self.workers.start), self.workers.stop - 1)

    def changed(self, changes: Mapping[str, int | None]) -> Limits:
        """Return these limits with some of them changed; None lifts a limit.

        Lifting the rate also lifts the burst, which needs a rate. Raises `InvalidCommandError`
        where a limit is unknown, out of its range, or at odds with another.
        """
        for name, value in changes.items():
            _check(name, value)
        wanted: dict[str, Any] = dict(changes)
        if wanted.get("weight", 0) is None:
            wanted["weight"] = DEFAULT_WEIGHT
        if wanted.get("rate", 0) is None:
            wanted.setdefault("burst", None)
        limits = replace(self, **wanted)
        if limits.burst is not None and limits.rate is None:
            raise InvalidCommandError("burst", "needs a rate; set both, or neither")
        if not limits.workers:
            raise InvalidCommandError("workers_min", f"is more than {limits.workers_max}, the most")
        return limits


NO_LIMITS: Final = Limits()


def parse_span(text: str) -> int | None:
    """Read a span of time like `90s`, `15m`, `12h`, `7d` or `2w` as seconds; None if invalid."""
    match = _SPAN.fullmatch(text.strip())
    return None if match is None else int(match[1]) * _UNITS[match[2]]


def _check(name: str, value: int | None) -> None:
    if name not in _NAMES:
        raise InvalidCommandError(name, f"there is no such limit; there are {', '.join(_NAMES)}")
    least, most = RANGES[name]
    if value is not None and not least <= value <= most:
        raise InvalidCommandError(
            SHOWN.get(name, name), f"must be {least} to {most}, or null for none"
        )


_NAMES: Final = tuple(one.name for one in fields(Limits))
