"""The port for the journal's parts: old parts are archived, and can be restored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from tenantry.journal.port import JournalError, Metadata

PART_EVENTS: Final = 1_000_000
"""Events after which a part ends at the latest: a part is archived in one transaction."""

LINES: Final = 1000
"""Events read from a part at once."""


class PartsError(JournalError):
    """The call is impossible in the present state: the message says why, and the remedy."""


class NoSuchPartError(PartsError):
    """The journal has no part of this number."""

    def __init__(self, part: int) -> None:
        super().__init__(f"the journal has no part {part}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The events appended from one position to another.

    The last part is open: it has no end yet, and its `events` are counted up to now. `first_at` and
    `last_at` are when its first and last event were recorded (UTC; None where there is none). For
    an archived part `archive` is the archive's place (`host:path`), `digest` (hexadecimal) that of
    its events.
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
        """Add the next line, without its line end."""
        self._sum.update(hashlib.sha256(line).digest())
        self.lines += 1

    def hexdigest(self) -> str:
        """Return the digest of all lines so far, in hexadecimal."""
        return self._sum.hexdigest()


class JournalParts(Protocol):
    """The parts of a journal. Each call blocks; any node may make it.

    Raises `JournalUnavailableError`, and `PartsError` where the present state forbids a call.
    """

    def listed(self) -> list[Part]:
        """Return all parts, oldest first, including archived ones."""

    def begin(self, most: int) -> int | None:
        """End the open part and begin the next, if that is due; return the new part's number.

        It is due when the part has `most` events, or was begun in a month (UTC) that is over. A
        part without events stays open.
        """

    def lines(self, part: int, *, after: int = 0, limit: int = LINES) -> list[tuple[int, str]]:
        """Read events of a part above position `after`, as an archive's lines.

        Returns pairs of position and line. Raises `EventsArchivedError`.
        """

    def archive(self, part: int, *, digest: str, archive: str, metadata: Metadata) -> Part:
        """Take the oldest kept part out of the journal, if `digest` is that of its events.

        The streams' versions and the tenants' states at its end are kept. The call is atomic, and
        harmless when repeated with the same digest. `archive` says where the events are.
        """

    def put_back(self, part: int, lines: Sequence[str], *, after: int) -> int:
        """Take lines of the last archived part, to be restored; return the last position.

        The lines follow position `after`, at which the previous call ended; 0 begins anew. Readers
        don't see them before `restore`.
        """

    def restore(self, part: int, metadata: Metadata) -> Part:
        """Make the lines put back a part of the journal again, if all archived events are there."""
