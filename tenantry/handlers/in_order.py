"""Plans which messages of a batch are tried together, and which after others of their partition.

A unit is a set of messages tried together. With ordered partitions, a unit is cut into parts, one
for each partition. The parts of a partition are tried one after the other; the first one that does
not succeed ends the partition's turn, and the messages behind it are left.
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
    """The messages of one partition in a unit."""

    unit: Unit
    entries: list[Entry] = field(default_factory=list)


class InOrder:
    """The parts of units by partition, and which of them are next."""

    def __init__(
        self, entries: Sequence[Entry], units: Sequence[Unit], held: Collection[int]
    ) -> None:
        """Cut units into parts. Other entries are settled or `held`; those behind are left."""
        self.left: list[Entry] = []
        """Entries behind one that did not succeed."""
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
        """Give the entries to try next; None if there are none left."""
        first = [parts[0] for parts in self._lanes.values()]
        if not first:
            return None
        # The oldest message of a batch comes first, so that a partition's suspects do not wait for
        # other partitions for ever.
        if first[0].unit.guarded or first[0].unit.alone:
            self._turn = first[:1]
        else:
            self._turn = [one for one in first if not (one.unit.guarded or one.unit.alone)]
        entries = [entry for part in self._turn for entry in part.entries]
        return Unit(entries, guarded=self._turn[0].unit.guarded)

    def tried(self, waiting: Collection[int]) -> None:
        """Note that entries were tried, and which of them, by index, did not succeed."""
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
        """Leave all entries that were not tried."""
        for parts in self._lanes.values():
            self.left += [entry for part in parts for entry in part.entries]
        self._lanes.clear()
