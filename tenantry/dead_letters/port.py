"""What is known of a tenant's dead letters. The messages themselves lie in the tenant's queue."""

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
"""Bytes of a body that is listed; a larger one is only in the queue."""


class RejectedMessage(NamedTuple):
    """A message that will be rejected, and why; `attempts` is how often it was tried.

    `error` is the last attempt's; `first_error` the first one's, None if it is the same. `again`
    where it may have been judged before, so that it is not listed as another.
    """

    message: Incoming
    reason: str
    error: str
    attempts: int
    first_error: str | None = None
    again: bool = False


class QueueMessage(NamedTuple):
    """A message found in the queue, since when it is there (None: unknown), and why.

    Times have whole seconds: they are the broker's.
    """

    rejected: RejectedMessage
    died_at: datetime | None


class IndexedDeadLetter(NamedTuple):
    """A dead letter's id, that of its event in the journal, and whether it has only now died."""

    id: UUID
    event_id: UUID
    fresh: bool


class Work(StrEnum):
    """What can be done to a dead letter."""

    REPLAY = "replay"
    DISCARD = "discard"


class Intent(NamedTuple):
    """Work that was begun and has not been settled."""

    id: UUID
    work: Work


class KnownDeadLetter(NamedTuple):
    """A message of the queue as the index knows it.

    `listed` is false where it only has to be removed: its dead letter is settled, or goes on as a
    later message. `replays` counts those begun; a replay with an `intent` is among them.
    `failed_again` tells that the intended replay has ended as a dead letter already. `recorded` is
    whether the journal tells of the dead letter.
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
    """Which dead letters are meant: all those that every given condition holds for.

    `names` are ids of dead letters or of their messages; `since` is included, `until` is not.
    """

    names: frozenset[str] | None = None
    reason: str | None = None
    topic: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def holds(self, message: Incoming, dead_letter: UUID, reason: str, at: datetime) -> bool:
        """Tell whether a dead letter is meant, by its message, id, reason and time."""
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

    `body` is None where it is too large to be listed; `headers` is JSON text, None where there are
    none or where they are too large. An id beyond every limit is cut. `position` orders.
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

    `worn` of them have been replayed as often as they may be.
    """

    as_of: datetime
    count: int
    worn: int
    places: Mapping[tuple[str, int], int]


def fingerprint(message: Incoming) -> bytes:
    """Tell messages apart by place, id and bytes: the same for every delivery of one."""
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
    """Name the event of a dead letter; `failed` is the replay that has failed, 0 for none."""
    return dead_letter if failed == 0 else uuid5(dead_letter, str(failed))


class DeadLetterIndex(Protocol):
    """Lists dead letters. Callable from any thread; committed when a call returns.

    A dead letter that becomes listed, and one that is settled, count in the tenant's totals, in the
    same transaction. Every call may raise `StoreUnavailableError`.
    """

    def add(self, tenant_id: str, rejected: Sequence[RejectedMessage]) -> list[IndexedDeadLetter]:
        """List messages that will be rejected, those listed already once.

        A message with an id is one dead letter, however often it comes, until the dead letter is
        settled; a replay that has failed is the dead letter it was. Messages without an id are a
        dead letter each.
        """

    def lookup(
        self, tenant_id: str, found: Sequence[QueueMessage], *, browse: UUID
    ) -> list[KnownDeadLetter]:
        """Tell what is known of messages that browsing has found in the queue; list the unknown.

        The k-th of several without an id that are the same is the k-th dead letter of them.
        """

    def begin(self, tenant_id: str, ids: Collection[UUID], intent: Intent) -> None:
        """Note what will be done to dead letters, before it is; a replay counts from now."""

    def withdraw(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Take back an intent that has come to nothing."""

    def settle(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Note that what was intended is done: the dead letters are listed no more.

        Only those stay listed whose replay has failed already.
        """

    def intended(self, tenant_id: str, intent: UUID) -> list[UUID]:
        """Give the dead letters of an intent, in order, the settled ones too."""

    def recorded(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Note that the journal tells of dead letters that `lookup` has listed."""

    def gone(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Note that settled dead letters' messages have left the queue."""

    def forget_missing(self, tenant_id: str, *, browse: UUID, older_than: float) -> int:
        """Forget listed dead letters that browsing the whole queue has not found; tell how many.

        Only dead letters that are more than `older_than` seconds old: those that were in the queue
        when browsing began.
        """

    def sweep(self, *, older_than: float) -> int:
        """Forget settled dead letters that have left the queue so many seconds ago; tell how many.

        Until then, a late copy of such a message is known for what it is.
        """

    def page(
        self, tenant_id: str, *, which: Selection = EVERYTHING, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """Give the dead letters beyond position `after`, oldest first, and whether there are more.

        A page has `limit` dead letters at most, and fewer where their bodies are large.
        """

    def preview(self, tenant_id: str, which: Selection, *, most_replays: int) -> Preview:
        """Count what a selection comes to."""

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """Find the listed dead letters that have one of these ids, their own or their message's."""

    def counts(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """Count the listed dead letters of tenants; those without any may be left out."""

    def unfinished(self) -> set[str]:
        """Name the tenants that have open intents, or dead letters the journal does not tell of."""
