"""The journal in parts, and what a store of them promises: old ones are archived, and come back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from tenantry.journal.port import JournalError, Metadata

PART_EVENTS: Final = 1_000_000
"""Events after which a part ends at the latest: one is archived in a transaction."""

LINES: Final = 1000
"""Events that are read of a part at once."""


class PartsError(JournalError):
    """Not as things are: the message says why, and what to do."""


class NoSuchPartError(PartsError):
    """The journal has no part of this number."""

    def __init__(self, part: int) -> None:
        super().__init__(f"the journal has no part {part}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What was appended from one position to another.

    The last part is open: it has no end yet, and its `events` are counted up to now. `first_at` and
    `last_at` are when its first and last event were recorded (UTC; None where there is none). Of an
    archived one `archive` says where it is (`host:path`), `digest` (hexadecimal) what is in it.
    """

    number: int
    first_position: int
    last_position: int | None
    first_at: datetime | None
    last_at: datetime | None
    events: int
    open: bool
    digest: str | None
    archive: str | None
    archived_at: datetime | None


class Digest:
    """Sums up the lines of a part, in order: the SHA-256 of the SHA-256 of each of them."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self.lines = 0

    def add(self, line: bytes) -> None:
        """Take up the next line, without its end."""
        self._sum.update(hashlib.sha256(line).digest())
        self.lines += 1

    def hexdigest(self) -> str:
        """Give the digest of all lines so far, in hexadecimal."""
        return self._sum.hexdigest()


class JournalParts(Protocol):
    """The parts of a journal. Each call blocks; any node may make it.

    Raises `JournalUnavailableError`, and `PartsError` where a call can't be as things are.
    """

    def listed(self) -> list[Part]:
        """Give all parts there have been, oldest first, the archived ones too."""

    def begin(self, most: int) -> int | None:
        """End the open part and begin the next, if it is due; give the new one's number.

        It is when the part has `most` events, or was begun in a month (UTC) that is over. A part
        without events goes on.
        """

    def lines(self, part: int, *, after: int = 0, limit: int = LINES) -> list[tuple[int, str]]:
        """Read events of a part above position `after`, as an archive holds them, each a line.

        Gives each one's position with it. Raises `EventsArchivedError`.
        """

    def archive(self, part: int, *, digest: str, archive: str, metadata: Metadata) -> Part:
        """Take the oldest kept part out of the journal, if `digest` is what it holds.

        Where streams stood, and in which state tenants were, is kept. All of it or nothing is
        done; done before with the same digest, it is well. `archive` says where the events are.
        """

    def put_back(self, part: int, lines: Sequence[str], *, after: int) -> int:
        """Take lines of the part that was archived last, to be restored; give the last position.

        They are those after the position `after`, which is where the call before ended; 0 begins
        anew. Nobody sees them before `restore`.
        """

    def restore(self, part: int, metadata: Metadata) -> Part:
        """Make what was put back a part of the journal again, if it is all that was archived."""
