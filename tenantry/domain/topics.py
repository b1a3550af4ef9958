"""The request for a topic: its name, its number of partitions, whether each is in order.

People write it as `events`, `events:8`, `events:ordered`, or `events:8:ordered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

ORDERED: Final = "ordered"
FORM: Final = f"NAME[:PARTITIONS][:{ORDERED}]"


class Ordering(StrEnum):
    """In which order a topic's messages are handled and stored."""

    NONE = "none"
    PARTITION = "partition"
    """The messages of one partition strictly in the order of their publishing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A requested topic; `partitions` defaults to the tenant's number."""

    name: str
    partitions: int | None = None
    ordering: Ordering | None = None

    @property
    def ordered(self) -> bool:
        """Whether its partitions are to be in order; by default they are not."""
        return self.ordering is Ordering.PARTITION


def as_topics(given: Iterable[str | Topic]) -> tuple[Topic, ...]:
    """Turn names among the given topics into topics."""
    return tuple(Topic(name=one) if isinstance(one, str) else one for one in given)


def topic_of(text: str) -> str | dict[str, Any]:
    """Read a topic as the API takes it. Raises `ValueError`."""
    name, *rest = text.split(":")
    if not rest:
        return name
    settings: dict[str, Any] = {}
    for one in rest:
        if one == ORDERED and "ordering" not in settings:
            settings["ordering"] = Ordering.PARTITION.value
        elif one.isascii() and one.isdigit() and len(one) < 10 and not settings:
            settings["partitions"] = int(one)
        else:
            raise ValueError(f"{text!r} is no topic: {FORM}, as events:8")
    return {"name": name, **settings}


def topics_in(text: str) -> list[str | dict[str, Any]]:
    """Read topics with commas or blanks between them. Raises `ValueError`."""
    return [topic_of(one) for one in text.replace(",", " ").split()]


def shown(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write topics in the form that `topics_in` reads."""
    return [
        f"{one['name']}:{one['partitions']}"
        + (f":{ORDERED}" if one["ordering"] == Ordering.PARTITION else "")
        for one in settings
    ]
