"""What a topic is asked for with: its name, its partitions, whether each of them is in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Ordering(StrEnum):
    """In which order a topic's messages are handled and stored."""

    NONE = "none"
    PARTITION = "partition"
    """Those of one partition strictly as they were published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic that is asked for; without `partitions` it has as many as the tenant's others."""

    name: str
    partitions: int | None = None
    ordering: Ordering | None = None

    @property
    def ordered(self) -> bool:
        """Whether its partitions are to be in order; they are not, where nothing is said."""
        return self.ordering is Ordering.PARTITION


def as_topics(given: Iterable[str | Topic]) -> tuple[Topic, ...]:
    """Give topics of which some may be told by their names alone."""
    return tuple(Topic(name=one) if isinstance(one, str) else one for one in given)
