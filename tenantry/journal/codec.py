"""Events as the journal writes them, and back: a type's name, a schema version, and plain JSON.

The events' own dataclasses are the schema: there is no case for any of them here. When an event's
fields change, its version in `VERSIONS` goes up by one and an upcaster lifts the data of older
versions; events in the journal never change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

from tenantry.domain.events import DeadLetterEvent, Event, PlacementEvent, SystemEvent, TenantEvent
from tenantry.domain.limits import NO_LIMITS, Limits
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import JournalError, Metadata, RecordedEvent, UnknownEventError

Data: TypeAlias = dict[str, Any]
Upcaster: TypeAlias = Callable[[Data], Data]
"""Lifts an event's data from one schema version to the next; must not change its argument."""

EVENT_TYPES: Final[Mapping[str, type[Event]]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            *get_args(TenantEvent),
            *get_args(DeadLetterEvent),
            *get_args(PlacementEvent),
            *get_args(SystemEvent),
        )
    }
)
"""The event classes by their names in the journal."""

VERSIONS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "MessageDeadLettered": 3,
        "DeadLettersAggregated": 2,
        "DeadLettersReplayed": 2,
        "DeadLettersDiscarded": 2,
        "WorkersResized": 2,
        "TenantCreated": 2,
        "TopicsAdded": 2,
    }
)
"""The schema version of each type that is beyond version 1."""


def _with_first_error(data: Data) -> Data:
    """Version 1 holds only the last error."""
    return {**data, "first_error": data["error"]}


def _with_count(data: Data) -> Data:
    """Version 1 does not count the dead letters."""
    return {**data, "count": len(data["ids"])}


def _unordered(data: Data) -> Data:
    """In version 1 all topics of a tenant have the same number of partitions; none is in order."""
    return {**data, "topic_partitions": [], "ordered": []}


def _out_of_no_order(data: Data) -> Data:
    """In version 2 no topic is in order."""
    return {**data, "ordered": False}


def _of_unknown_order(data: Data) -> Data:
    """Version 1 does not say how many dead letters came out of an ordered topic."""
    return {**data, "ordered": None, "partitions": []}


def _as_asked(data: Data) -> Data:
    """In version 1 a resize was always requested by a client, so it has no reason."""
    return {**data, "reason": ""}


UPCASTERS: Final[Mapping[tuple[str, int], Upcaster]] = MappingProxyType(
    {
        ("MessageDeadLettered", 1): _with_first_error,
        ("DeadLettersReplayed", 1): _with_count,
        ("DeadLettersDiscarded", 1): _with_count,
        ("WorkersResized", 1): _as_asked,
        ("MessageDeadLettered", 2): _out_of_no_order,
        ("DeadLettersAggregated", 1): _of_unknown_order,
        ("TenantCreated", 1): _unordered,
        ("TopicsAdded", 1): _unordered,
    }
)
"""The upcaster from a type's schema version to the next."""

STATE_SCHEMA: Final = 6
"""The shape of a written tenant state. Raise it when the state's fields or `evolve` change: states
in another shape are then folded anew from the events."""

FIRST_BASE_SCHEMA: Final = 6
"""The shape that the states of tenants had when events were archived for the first time."""

BASE_UPCASTERS: Final[Mapping[int, Upcaster]] = MappingProxyType({})
"""The upcaster from each shape of base states since `FIRST_BASE_SCHEMA` to the next. Archived
events can't be folded anew, so their base states are lifted, as events are."""

_FORMER_LIFECYCLES: Final[Mapping[str, str]] = MappingProxyType({"draining": "deleting"})
"""Older programs' names of lifecycles: a standby reads states that its older leader writes."""

_SINCE_THEN: Final[Mapping[str, object]] = MappingProxyType(
    {
        "consumer_access": False,
        "limits": asdict(NO_LIMITS),
        "topic_partitions": [],
        "ordered": [],
    }
)
"""Defaults of state fields that an older leader does not write."""

_UNHOLDABLE: Final = re.compile("[\0\ud800-\udfff]")
_STAND_IN: Final = "\N{REPLACEMENT CHARACTER}"


class MalformedEventError(JournalError):
    """An event's data does not have the fields and types of its schema version."""


class Codec:
    """Turns events into `(type, schema version, data)` and back, strictly.

    Text that PostgreSQL's JSON can't hold (NUL, lone surrogates) is written with U+FFFD instead.
    """

    def __init__(
        self,
        types: Mapping[str, type[Any]] = EVENT_TYPES,
        versions: Mapping[str, int] = VERSIONS,
        upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS,
    ) -> None:
        """Raises `ValueError` where an upcaster is missing on the way to a current version."""
        for name, current in versions.items():
            for version in range(1, current):
                if (name, version) not in upcasters:
                    raise ValueError(f"no upcaster of {name} from version {version}")
        self._types = types
        self._versions = versions
        self._upcasters = upcasters

    def encode(self, event: Event) -> tuple[str, int, Data]:
        """Write an event. Raises `UnknownEventError`."""
        name = type(event).__name__
        if self._types.get(name) is not type(event):
            raise UnknownEventError(f"{name} is no event of the journal")
        data = {one.name: _plain(getattr(event, one.name)) for one in fields(event)}
        return name, self._versions.get(name, 1), data

    def decode(self, name: str, schema_version: int, data: Mapping[str, object]) -> Event:
        """Read an event of any schema version up to the current one.

        Raises `UnknownEventError` for a type or a version this program does not know,
        `MalformedEventError` for missing, extra or ill-typed fields.
        """
        kind = self._types.get(name)
        current = self._versions.get(name, 1)
        if kind is None or not 1 <= schema_version <= current:
            raise UnknownEventError(
                f"the journal holds {name} in version {schema_version}, which this program does "
                "not know; run the newer tenantry that wrote it"
            )
        lifted = dict(data)
        for version in range(schema_version, current):
            lifted = self._upcasters[name, version](lifted)
        event: Event = _build(kind, lifted)
        return event


CODEC: Final = Codec()
"""The codec of this program's events."""


def tenant_events(recorded: Iterable[RecordedEvent]) -> Iterator[tuple[TenantEvent, datetime]]:
    """Give the events of a tenant's life with their times, as `fold` takes them.

    Raises `JournalError` where there is another event among them.
    """
    for one in recorded:
        if isinstance(one.event, DeadLetterEvent | PlacementEvent | SystemEvent):
            raise JournalError(
                f"{one.stream} holds an event of another kind at version {one.version}"
            )
        yield one.event, one.recorded_at


def encode_metadata(metadata: Metadata) -> Data:
    """Write metadata as plain JSON, without fields that are None."""
    return {
        one.name: _plain(value)
        for one in fields(metadata)
        if (value := getattr(metadata, one.name)) is not None
    }


def decode_metadata(data: Mapping[str, Any]) -> Metadata:
    """Read metadata, leniently, unlike events: fields that a newer program adds are ignored."""
    return Metadata(
        actor=str(data.get("actor", "")),
        correlation_id=str(data.get("correlation_id", "")),
        causation_id=data.get("causation_id"),
        trace_id=data.get("trace_id"),
    )


def encode_state(state: TenantState) -> Data:
    """Write a tenant's state as plain JSON."""
    return _fields(state)


def decode_state(data: Mapping[str, object]) -> TenantState:
    """Read a tenant's state of shape `STATE_SCHEMA`. Raises `MalformedEventError`."""
    written = str(data.get("lifecycle"))
    former = {"lifecycle": _FORMER_LIFECYCLES[written]} if written in _FORMER_LIFECYCLES else {}
    state: TenantState = _build(TenantState, {**_SINCE_THEN, **data, **former})
    return state


def decode_base(
    schema_version: int, data: Mapping[str, object], *, stream: str, version: int
) -> TenantState:
    """Read the base state of a tenant's archived events, in any known shape.

    Raises `UnknownEventError` where a newer program wrote it, `JournalError` where it is broken.
    """
    lifted = dict(data)
    if not FIRST_BASE_SCHEMA <= schema_version <= STATE_SCHEMA:
        raise UnknownEventError(
            f"of {stream} events are archived, and what they came to is kept in the shape "
            f"{schema_version}, which this program does not know; run the newer tenantry that did"
        )
    for shape in range(schema_version, STATE_SCHEMA):
        lifted = BASE_UPCASTERS[shape](lifted)
    state = decode_state(lifted)
    if state.version != version:
        raise JournalError(
            f"what archived events of {stream} came to is of version {state.version}, not "
            f"{version}; restore them"
        )
    return state


_OUT_OF_TEXT: Final[Mapping[type, Callable[[Any], object]]] = MappingProxyType(
    {Lifecycle: Lifecycle, datetime: datetime.fromisoformat}
)
"""Parsers for types that JSON lacks, which `_plain` writes as text."""


def _plain(value: object) -> object:
    match value:
        case Lifecycle():
            return value.value
        case datetime():
            return value.isoformat()
        case str():
            return _UNHOLDABLE.sub(_STAND_IN, value)
        case tuple():
            return [_plain(one) for one in value]
        case Limits():
            return _fields(value)
        case _:
            return value


def _fields(value: TenantState | Limits) -> Data:
    return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}


def _build(kind: Any, data: Mapping[str, object]) -> Any:
    hints = _hints(kind)
    if data.keys() != hints.keys():
        missing, extra = sorted(hints.keys() - data.keys()), sorted(data.keys() - hints.keys())
        raise MalformedEventError(f"{kind.__name__}: missing {missing}, unexpected {extra}")
    return kind(
        **{
            name: _typed(value, hints[name], f"{kind.__name__}.{name}")
            for name, value in data.items()
        }
    )


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _typed(value: object, hint: Any, where: str) -> object:
    origin = get_origin(hint)
    if origin is tuple:
        (inner, _) = get_args(hint)
        if isinstance(value, list | tuple):
            return tuple(_typed(one, inner, where) for one in value)
    elif origin is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        inner = next(one for one in get_args(hint) if one is not NoneType)
        return _typed(value, inner, where)
    elif hint is Limits and isinstance(value, Mapping):
        return _build(Limits, value)
    elif hint in _OUT_OF_TEXT:
        with suppress(ValueError, TypeError):
            return _OUT_OF_TEXT[hint](value)
    elif type(value) is hint:  # not isinstance: True is no number
        return value
    raise MalformedEventError(f"{where}: {value!r:.80} is no {hint}")
