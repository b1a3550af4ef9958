"""The port of the index of dead letters. The messages themselves are in the tenant's queue."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from uuid import UUID, uuid5

from tenantry.messages.port import Incoming

LARGEST_BODY: Final = 1024 * 1024
"""The largest body in the index, in bytes; a larger one is in the queue alone."""


class RejectedMessage(NamedTuple):
    """A message that will be rejected, and why, after so many `attempts`.

    `error` is from the last attempt; `first_error` from the first one, None if it is the same.
    `again`: it may have been listed before, and must not be listed twice.
    """

    message: Incoming
    reason: str
    error: str
    attempts: int
    first_error: str | None = None
    again: bool = False


class QueueMessage(NamedTuple):
    """A message found in the queue, with the time (None: unknown) and reason of its dead-lettering.

    Times are the broker's, in whole seconds.
    """

    rejected: RejectedMessage
    died_at: datetime | None


class IndexedDeadLetter(NamedTuple):
    """A dead letter's id, the id of its journal event, and whether it was listed only now."""

    id: UUID
    event_id: UUID
    fresh: bool


class Work(StrEnum):
    """The kinds of work on a dead letter."""

    REPLAY = "replay"
    DISCARD = "discard"


class Intent(NamedTuple):
    """Work that was begun and is not settled yet."""

    id: UUID
    work: Work


class KnownDeadLetter(NamedTuple):
    """A message of the queue as the index knows it.

    `listed` is false if the message only has to be removed: its dead letter is settled, or
    continues as a later message. `replays` counts begun replays, including that of an `intent`.
    `failed_again`: the intended replay has already become a dead letter itself. `recorded`: the
    dead letter is in the journal.
    """

    id: UUID
    event_id: UUID
    listed: bool
    reason: str
    error: str
    first_error: str | None
    attempts: int
    dead_lettered_at: datetime
    replays: int
    intent: Intent | None
    failed_again: bool
    recorded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A selection of dead letters: those that meet every given condition.

    `names` are ids of dead letters or of their messages; `since` is included, `until` is not.
    """

    names: frozenset[str] | None = None
    reason: str | None = None
    topic: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def holds(self, message: Incoming, dead_letter: UUID, reason: str, at: datetime) -> bool:
        """Tell whether a dead letter is selected, by its message, id, reason and time."""
        return (
            (self.names is None or str(dead_letter) in self.names or message.id in self.names)
            and self.reason in (None, reason)
            and self.topic in (None, message.topic)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
        )


EVERYTHING: Final = Selection()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter as it is listed: `id` is its own, `message_id` the message's, if it has one.

    `body` is None if it is too large for the index; `headers` is JSON text, None if there are none
    or they are too large. An id beyond every limit is cut. `position` is the order.
    """

    id: UUID
    tenant_id: str
    position: int
    message_id: str | None
    topic: str
    partition: int
    reason: str
    error: str
    first_error: str
    attempts: int
    replays: int
    size: int
    body: bytes | None
    content_type: str | None
    headers: str | None
    published_at: datetime | None
    dead_lettered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a selection comes to at the time `as_of`: how many dead letters, and from where.

    `worn` of them have reached the limit of replays.
    """

    as_of: datetime
    count: int
    worn: int
    places: Mapping[tuple[str, int], int]


def fingerprint(message: Incoming) -> bytes:
    """Hash a message's place, id and bytes: equal for every delivery of the message."""
    digest = hashlib.sha256()
    for part in (
        message.topic,
        str(message.partition),
        "-" if message.id is None else f"+{message.id}",
        "",
    ):
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(4) + data)
    digest.update(message.body)
    return digest.digest()


def event_id(dead_letter: UUID, failed: int) -> UUID:
    """Give the id of a dead letter's journal event; `failed` is the failed replay, or 0."""
    return dead_letter if failed == 0 else uuid5(dead_letter, str(failed))


class DeadLetterIndex(Protocol):
    """The index of dead letters. Callable from any thread; committed when a call returns.

    Listing and settling a dead letter update the tenant's totals in the same transaction. Every
    call may raise `StoreUnavailableError`.
    """

    def add(self, tenant_id: str, rejected: Sequence[RejectedMessage]) -> list[IndexedDeadLetter]:
        """List messages that will be rejected; messages that are listed already stay listed once.

        All messages with one id are one dead letter until it is settled; a failed replay is the
        same dead letter again. Each message without an id is a dead letter of its own.
        """

    def lookup(
        self, tenant_id: str, found: Sequence[QueueMessage], *, browse: UUID
    ) -> list[KnownDeadLetter]:
        """Look up messages that browsing has found in the queue, and list the unknown ones.

        Of equal messages without an id, the k-th belongs to the k-th dead letter.
        """

    def begin(self, tenant_id: str, ids: Collection[UUID], intent: Intent) -> None:
        """Store the intended work on dead letters before it is done; a replay counts from now."""

    def withdraw(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Withdraw an intent that was not carried out."""

    def settle(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Settle an intent that was carried out: its dead letters are no longer listed.

        Those whose replay has failed by then stay listed.
        """

    def intended(self, tenant_id: str, intent: UUID) -> list[UUID]:
        """Give the dead letters of an intent, in order, including settled ones."""

    def recorded(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Note that dead letters listed by `lookup` are in the journal."""

    def gone(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Note that the messages of settled dead letters have left the queue."""

    def forget_missing(self, tenant_id: str, *, browse: UUID, older_than: float) -> int:
        """Remove listed dead letters that a browse of the whole queue did not find; give how many.

        Only those older than `older_than` seconds, which were in the queue when the browse began.
        """

    def sweep(self, *, older_than: float) -> int:
        """Remove settled dead letters whose messages left the queue long ago; give how many.

        Until then, a late copy of such a message is recognised.
        """

    def page(
        self, tenant_id: str, *, which: Selection = EVERYTHING, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """Give the dead letters after position `after`, oldest first, and whether more follow.

        A page has at most `limit` dead letters, and fewer if their bodies are large.
        """

    def preview(self, tenant_id: str, which: Selection, *, most_replays: int) -> Preview:
        """Count the dead letters of a selection."""

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """Find listed dead letters by these ids: their own or their message's."""

    def counts(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """Count the listed dead letters of tenants; tenants without any may be left out."""

    def unfinished(self) -> set[str]:
        """Name the tenants with open intents, or with dead letters missing in the journal."""
