"""The rules by which a message in the queue belongs to a dead letter, independent of storage.

A dead letter is a row; its messages are the original and one for each replay. After a crash the
queue may hold two messages of one replay, or an original beside its replay. So a message is
identified by what does not change (place, id, bytes) and by the number of the replay that it
carries; a message of an earlier replay than its dead letter's is stale.

An id makes one dead letter of all messages with it; messages without an id are told apart by
counting them. Where that is impossible (many equal messages, some of them settled as the daemon
died), the rules rather list one twice than lose one.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple
from uuid import UUID

from tenantry.dead_letters.port import (
    IndexedDeadLetter,
    Intent,
    KnownDeadLetter,
    QueueMessage,
    RejectedMessage,
    Work,
    event_id,
    fingerprint,
)
from tenantry.messages.headers import REPLAY_HEADER, REPLAYS_HEADER, UnreadableHeadersError
from tenantry.messages.port import Incoming

_MOST: Final = 1_000_000


class Identity(NamedTuple):
    """A message's fingerprint, and the replay that it is (`letter` None, 0: an original).

    `named`: it has an id; `renamed`: its id is its dead letter's, given to it for the replay.
    """

    fingerprint: bytes
    dead_letter: UUID | None
    replay: int
    named: bool
    renamed: bool


@dataclass(slots=True, kw_only=True)
class Row:
    """A dead letter while it is matched; `was` is the id it is stored under, None for a new one.

    `content` is the message to store with it, if that has changed.
    """

    was: UUID | None
    id: UUID
    fingerprint: bytes
    copy: int = 0
    settled: bool = False
    replays: int = 0
    failed: int = 0
    intent: Intent | None = None
    died_at: datetime | None = None
    seen_in: UUID | None = None
    recorded: bool = True
    reason: str
    error: str
    first_error: str | None
    attempts: int
    dead_lettered_at: datetime
    content: Incoming | None = None
    listed_now: bool = False

    @property
    def open_intent(self) -> Intent | None:
        """The work that was begun with the dead letter and not settled."""
        return None if self.settled else self.intent

    def blame(self, rejected: RejectedMessage) -> None:
        """Set why the message was dead-lettered now."""
        self.reason, self.attempts = rejected.reason, rejected.attempts
        self.error, self.first_error = rejected.error, rejected.first_error


class _Stand(NamedTuple):
    """The state of a row for matching: `kind`, and when its message died, if that matters.

    An original is `untouched` while no work was begun with it and no browse has seen it.
    """

    kind: Literal["untouched", "original", "begun", "settled"]
    died_at: datetime | None = None


def identify(message: Incoming) -> Identity:
    """Identify a message by its properties and bytes."""
    headers = message.headers or {}
    try:
        dead_letter, number = (
            _dead_letter_id(headers.get(REPLAY_HEADER)),
            headers.get(REPLAYS_HEADER),
        )
    except UnreadableHeadersError:
        dead_letter = number = None
    replay = 0
    if dead_letter is not None:
        replay = number if type(number) is int and 0 < number < _MOST else 1
    return Identity(
        fingerprint(message),
        dead_letter,
        replay,
        named=message.id is not None,
        renamed=dead_letter is not None and message.id == str(dead_letter),
    )


def _dead_letter_id(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


class Matching:
    """Matches messages to existing rows, updates these and adds new ones."""

    def __init__(
        self, rows: Iterable[Row], *, new_id: Callable[[], UUID], now: datetime, browse: UUID | None
    ) -> None:
        """`rows` have a fingerprint or an id of the messages, as `identify` gives them.

        Of very many equal ones, the `Wanted` ones and the last one are enough.
        """
        self._new_id = new_id
        self._now = now
        self._browse = browse
        self._used: set[UUID] = set()
        self._by_id: dict[UUID, Row] = {}
        self._by_fingerprint: defaultdict[bytes, list[Row]] = defaultdict(list)
        self._free: dict[bytes, dict[_Stand, deque[Row]]] = {}
        """Rows that messages without an id may belong to, by their state before."""
        for row in rows:
            self._by_id[row.id] = row
            self._by_fingerprint[row.fingerprint].append(row)
        for same in self._by_fingerprint.values():
            same.sort(key=lambda row: row.copy)
        self.new: list[Row] = []
        self.changed: dict[UUID, Row] = {}
        """Existing rows that have changed, by the id they are stored under."""

    @property
    def fresh(self) -> int:
        """How many dead letters were listed."""
        return sum(row.listed_now for row in (*self.new, *self.changed.values()))

    def add(self, rejected: RejectedMessage) -> IndexedDeadLetter:
        """Match a message that is about to be rejected."""
        identity = identify(rejected.message)
        row = self._row_of(identity)
        if row is None and not identity.named and rejected.again:
            row = self._first(identity, _Stand("untouched"))
        if row is None:
            row = self._add(identity, rejected, died_at=None, recorded=True)
            return IndexedDeadLetter(row.id, event_id(row.id, row.failed), fresh=True)
        fresh = self._arrive(row, identity, rejected, died_at=None, recorded=True, later=True)
        if not fresh and not row.settled:
            self._change(row)
            row.blame(rejected)
        return IndexedDeadLetter(row.id, event_id(row.id, row.failed), fresh)

    def lookup(self, found: Sequence[QueueMessage]) -> list[KnownDeadLetter]:
        """Match messages that lie in the queue, in its order.

        The result for each message takes all of them into account: a replay may come after its
        original.
        """
        found_rows = [self._lookup_one(one) for one in found]
        return [self._told(row, listed=number >= row.failed) for row, number in found_rows]

    def _lookup_one(self, found: QueueMessage) -> tuple[Row, int]:
        """Find or make a message's row; give it, and the number of the message's replay."""
        rejected, died_at = found
        identity = identify(rejected.message)
        row = self._row_of(identity)
        if row is None and not identity.named:
            row = self._one_of_many(identity, died_at)
        if row is None:
            row = self._add(identity, rejected, died_at=died_at, recorded=False)
            number = 0
        else:
            later = died_at is not None and (row.died_at is None or died_at > row.died_at)
            self._arrive(row, identity, rejected, died_at=died_at, recorded=False, later=later)
            number = identity.replay if row.id == identity.dead_letter else 0
            self._change(row)
            if not row.settled and number >= row.failed:
                row.died_at = died_at
        row.seen_in = self._browse
        self._used.add(row.id)
        return row, number

    @staticmethod
    def _told(row: Row, *, listed: bool) -> KnownDeadLetter:
        intent = row.open_intent
        return KnownDeadLetter(
            id=row.id,
            event_id=event_id(row.id, row.failed),
            listed=listed and not row.settled,
            reason=row.reason,
            error=row.error,
            first_error=row.first_error,
            attempts=row.attempts,
            dead_lettered_at=row.dead_lettered_at,
            replays=row.replays,
            intent=intent,
            failed_again=intent is not None
            and intent.work is Work.REPLAY
            and row.failed >= row.replays,
            recorded=row.recorded,
        )

    def _row_of(self, identity: Identity) -> Row | None:
        """Find the dead letter of a message with an id; there is at most one."""
        if identity.renamed and identity.dead_letter in self._by_id:
            return self._by_id[identity.dead_letter]
        if not identity.named:
            return None
        return next(iter(self._by_fingerprint[identity.fingerprint]), None)

    def _one_of_many(self, identity: Identity, died_at: datetime | None) -> Row | None:
        """Choose among the dead letters of equal messages without an id."""
        wanted = (
            _Stand("original", died_at),
            _Stand("original"),
            _Stand("begun"),
            _Stand("settled", died_at),
        )
        found = (self._first(identity, stand) for stand in wanted)
        return next((row for row in found if row is not None), None)

    @staticmethod
    def _is_original(row: Row) -> bool:
        return not row.settled and row.failed == 0

    def _first(self, identity: Identity, stand: _Stand) -> Row | None:
        """Take the first row of a message that is in a state.

        Rows that are passed over are not checked again: a row never returns to a former state.
        """
        stands = self._free.get(identity.fingerprint)
        if stands is None:
            stands = self._free[identity.fingerprint] = self._sorted(identity.fingerprint)
        free = stands.get(stand, deque())
        while free:
            row = free.popleft()
            if row.id not in self._used and stand in self._stands(row):
                self._used.add(row.id)
                return row
        return None

    def _sorted(self, fingerprint: bytes) -> dict[_Stand, deque[Row]]:
        """Group the rows of equal messages by state, without those matched in this browse.

        There may be very many if a client sends equal messages without an id: each row is read
        once, and not once for each message.
        """
        stands: defaultdict[_Stand, deque[Row]] = defaultdict(deque)
        for row in self._by_fingerprint[fingerprint]:
            if row.id in self._used or (self._browse is not None and row.seen_in == self._browse):
                continue
            for stand in self._stands(row):
                stands[stand].append(row)
        return stands

    def _stands(self, row: Row) -> Iterator[_Stand]:
        """Give every state that a row is in now."""
        if self._is_original(row):
            yield _Stand("original", row.died_at)
            if row.intent is None and row.died_at is None:
                yield _Stand("untouched")
        if row.open_intent is not None:
            yield _Stand("begun")
        if row.settled:
            yield _Stand("settled", row.died_at)

    def _arrive(
        self,
        row: Row,
        identity: Identity,
        rejected: RejectedMessage,
        *,
        died_at: datetime | None,
        recorded: bool,
        later: bool,
    ) -> bool:
        """List a settled row again if its message died once more, `later`; tell whether it did."""
        number = identity.replay if row.id == identity.dead_letter else 0
        if number > row.failed:
            self._change(row)
            row.failed = number
            row.replays = max(row.replays, number)
        elif row.settled and number == 0 and identity.named and later:
            # It was settled, and the same message was sent again: this is another dead letter.
            self._change(row)
            row.id = self._new_id()
            row.replays = identity.replay
            row.failed = 0
        else:
            return False
        if row.settled:
            row.settled, row.intent = False, None
        row.content = rejected.message
        row.blame(rejected)
        row.died_at, row.dead_lettered_at = died_at, died_at or self._now
        row.recorded = recorded
        row.listed_now = True
        return True

    def _add(
        self,
        identity: Identity,
        rejected: RejectedMessage,
        *,
        died_at: datetime | None,
        recorded: bool,
    ) -> Row:
        same = self._by_fingerprint[identity.fingerprint]
        row = Row(
            was=None,
            id=self._new_id(),
            fingerprint=identity.fingerprint,
            copy=same[-1].copy + 1 if same else 0,
            replays=identity.replay,
            died_at=died_at,
            recorded=recorded,
            reason=rejected.reason,
            error=rejected.error,
            first_error=rejected.first_error,
            attempts=rejected.attempts,
            dead_lettered_at=died_at or self._now,
            content=rejected.message,
            listed_now=True,
        )
        same.append(row)
        self.new.append(row)
        self._by_id[row.id] = row
        self._used.add(row.id)
        return row

    def _change(self, row: Row) -> None:
        if row.was is not None:
            self.changed[row.was] = row


class Wanted(NamedTuple):
    """Which rows have to be read to match messages.

    `named` has the fingerprints of messages with an id, one row each; `ids` the ids in replays.
    Messages without an id are `alike` by fingerprint and time of death: of their rows, at most
    `most` in each state are needed.
    """

    named: list[bytes]
    ids: list[UUID]
    alike: Mapping[tuple[bytes, datetime | None], int]


def wanted_for_rejected(rejected: Sequence[RejectedMessage]) -> Wanted:
    """Give the rows that `add` needs; earlier ones only for messages that may be listed already."""
    return _wanted([(one.message, None, one.again) for one in rejected])


def wanted_for_found(found: Sequence[QueueMessage]) -> Wanted:
    """Give the rows that `lookup` needs."""
    return _wanted([(one.rejected.message, one.died_at, True) for one in found])


def _wanted(messages: Sequence[tuple[Incoming, datetime | None, bool]]) -> Wanted:
    named: set[bytes] = set()
    ids: set[UUID] = set()
    counts: Counter[bytes] = Counter()
    places: set[tuple[bytes, datetime | None]] = set()
    for message, died_at, again in messages:
        identity = identify(message)
        if identity.dead_letter is not None:
            ids.add(identity.dead_letter)
        if identity.named:
            named.add(identity.fingerprint)
        else:
            counts[identity.fingerprint] += again
            places.add((identity.fingerprint, died_at))
    # A message can take the row of an equal one, whatever the time of that.
    return Wanted(list(named), list(ids), {place: counts[place[0]] for place in places})
