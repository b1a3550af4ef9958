"""Which messages of a batch are tried together, and which after others of their partition.

A unit is what is tried together. Where partitions are in order, a unit is cut into parts, each of
one partition; the parts of a partition follow each other, and the first that is not through ends
it: what is behind is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from tenantry.handlers.handler_transaction import Entry


@dataclass(slots=True)
class Unit:
    """Entries that are tried together.

    `guarded`: one of them may kill the daemon. `alone`: not together with others' parts.
    """

    entries: list[Entry]
    guarded: bool = False
    alone: bool = False


@dataclass(slots=True)
class _Part:
    """What is of one partition in a unit."""

    unit: Unit
    entries: list[Entry] = field(default_factory=list)


class InOrder:
    """The parts of units, partition by partition, and which of them have their turn."""

    def __init__(
        self, entries: Sequence[Entry], units: Sequence[Unit], held: Collection[int]
    ) -> None:
        """Take units apart. Entries in none are settled, or `held`: then those behind are left."""
        self.left: list[Entry] = []
        """What stands behind something that is not through."""
        self._lanes: dict[tuple[str, int], deque[_Part]] = {}
        self._turn: list[_Part] = []
        units_of = {entry.index: unit for unit in units for entry in unit.entries}
        stopped: set[tuple[str, int]] = set()
        for entry in entries:
            unit = units_of.get(entry.index)
            if entry.lane in stopped:
                self.left.append(entry)
            elif unit is None:
                if entry.index in held:
                    stopped.add(entry.lane)
            else:
                parts = self._lanes.setdefault(entry.lane, deque())
                if not parts or parts[-1].unit is not unit:
                    parts.append(_Part(unit))
                parts[-1].entries.append(entry)

    def next(self) -> Unit | None:
        """Give what is to be tried now; None where there is nothing more."""
        first = [parts[0] for parts in self._lanes.values()]
        if not first:
            return None
        # What has waited longest comes first in a batch: no partition's suspects wait for others'
        # messages for ever.
        if first[0].unit.guarded or first[0].unit.alone:
            self._turn = first[:1]
        else:
            self._turn = [one for one in first if not (one.unit.guarded or one.unit.alone)]
        entries = [entry for part in self._turn for entry in part.entries]
        return Unit(entries, guarded=self._turn[0].unit.guarded)

    def tried(self, waiting: Collection[int]) -> None:
        """Note that this was tried, and which entries, by their indexes, are not through."""
        for part in self._turn:
            lane = part.entries[0].lane
            parts = self._lanes[lane]
            parts.popleft()
            if any(entry.index in waiting for entry in part.entries):
                self.left += [entry for rest in parts for entry in rest.entries]
                parts.clear()
            if not parts:
                del self._lanes[lane]

    def leave(self) -> None:
        """Have all that has not had its turn left."""
        for parts in self._lanes.values():
            self.left += [entry for part in parts for entry in part.entries]
        self._lanes.clear()
