"""One call's way along a queue: what is wanted of it, and what it has come to so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

from tenantry.dead_letters.letters import Letter
from tenantry.dead_letters.port import Selection, Work
from tenantry.journal.port import Metadata

BATCH: Final = 100
"""Letters worked off together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessed:
    """What a call has done: to how many letters, and why not to others.

    `worn` have been replayed as often as they may be; `refused` the broker does not take.
    `complete` unless time or the limit ended it with letters left.
    """

    count: int = 0
    worn: int = 0
    refused: int = 0
    complete: bool = True


@dataclass(slots=True, kw_only=True)
class Job:
    """A walk under way."""

    tenant_id: str
    work: Work | None
    which: Selection
    metadata: Metadata
    most: int | None
    force: bool
    stopping: Callable[[], bool] = lambda: False
    browse_id: UUID = field(default_factory=uuid4)
    wanted: set[UUID] | None = None
    count: int = 0
    worn: int = 0
    refused: int = 0
    met: set[UUID] = field(default_factory=set)
    removed: set[UUID] = field(default_factory=set)

    @property
    def room(self) -> int:
        """How many letters may still be taken."""
        return BATCH if self.most is None else self.most - self.count

    @property
    def done(self) -> bool:
        """Whether nothing more can be wanted of the walk."""
        found_all = self.wanted is not None and self.wanted <= self.removed
        return self.room <= 0 or found_all or self.stopping()

    def copies(self, letters: Sequence[Letter]) -> set[int]:
        """Give the places of listed messages whose letter was met before."""
        found = set()
        for one in letters:
            if one.met.listed and one.met.id in self.met:
                found.add(one.place)
            elif one.met.listed:
                self.met.add(one.met.id)
        return found

    def means(self, letter: Letter) -> bool:
        """Tell whether a letter is among those meant."""
        met = letter.met
        return self.which.holds(letter.message, met.id, met.reason, met.dead_lettered_at)


def once(letters: Iterable[Letter]) -> list[Letter]:
    """Leave out further messages of the same letter."""
    first: dict[UUID, Letter] = {}
    for one in letters:
        first.setdefault(one.met.id, one)
    return list(first.values())
