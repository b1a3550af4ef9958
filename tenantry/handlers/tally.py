"""What becomes of a batch, gathered from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tenantry.handlers.transaction import Entry
from tenantry.messages.port import Held, StoreResult, Unstorable


@dataclass(slots=True)
class Tally:
    """What has become of a batch so far."""

    stored: int = 0
    duplicates: int = 0
    unstorable: list[Unstorable] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reused: list[int] = field(default_factory=list)

    def add(self, part: StoreResult, indexes: Sequence[int]) -> None:
        """Add what has become of a part of the batch."""
        self.stored += part.stored
        self.duplicates += part.duplicates
        self.unstorable += [replace(one, index=indexes[one.index]) for one in part.unstorable]
        self.reused += [indexes[index] for index in part.reused]

    def leave(self, entries: Sequence[Entry]) -> None:
        """Note that entries were not come to."""
        self.left += [entry.index for entry in entries]

    def result(self) -> StoreResult:
        """Give it all."""
        return StoreResult(
            stored=self.stored,
            duplicates=self.duplicates,
            unstorable=tuple(sorted(self.unstorable, key=lambda one: one.index)),
            held=tuple(self.held),
            left=tuple(sorted(self.left)),
            failures=tuple(self.failures),
            reused=tuple(sorted(self.reused)),
        )
