"""What is known of a tenant's dead letters. The messages themselves lie in the tenant's queue."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from tenantry.messages.port import Incoming

REPLAY_HEADER: Final = "x-tenantry-replay"
"""Marks a message that was replayed: the id of the dead letter it was."""

LARGEST_BODY: Final = 1024 * 1024
"""Bytes of a body that is listed; a larger one is only in the queue."""


class Judged(NamedTuple):
    """A message that will be rejected, and why; `attempts` is how often it was tried.

    `error` is the last attempt's; `first_error` the first one's, None if it is the same.
    """

    message: Incoming
    reason: str
    error: str
    attempts: int
    first_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A dead letter as it is listed: `id` is its own, `message_id` the message's, if it has one.

    `body` is None where it is too large to be listed; `headers` is JSON text. `position` orders.
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
    size: int
    body: bytes | None
    content_type: str | None
    headers: str | None
    published_at: datetime | None
    dead_lettered_at: datetime


class Outcome(StrEnum):
    """How a letter was settled."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"


class Known(NamedTuple):
    """What is known of a message in the queue; `settled`: it only has to be removed."""

    id: UUID
    settled: bool


def fingerprint(message: Incoming) -> bytes:
    """Tell dead letters apart: the same for every delivery of one, another after a replay."""
    marker = (message.headers or {}).get(REPLAY_HEADER)
    digest = hashlib.sha256()
    for part in (
        message.topic,
        str(message.partition),
        "-" if message.id is None else f"+{message.id}",
        marker if isinstance(marker, str) else "",
    ):
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(4) + data)
    digest.update(message.body)
    return digest.digest()


class DeadLetterIndex(Protocol):
    """Lists dead letters. Callable from any thread; committed when a call returns.

    Every call may raise `StoreUnavailableError`.
    """

    def keep(self, tenant_id: str, letters: Sequence[Judged]) -> list[UUID]:
        """List dead letters, those listed already once; give the id of each."""

    def page(
        self, tenant_id: str, *, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """Give the letters beyond position `after`, oldest first, and whether there are more.

        A page has `limit` letters at most, and fewer where their bodies are large.
        """

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """Find the letters that have one of these ids, their own or their message's."""

    def find(
        self, tenant_id: str, fingerprints: Sequence[bytes], *, walk: UUID
    ) -> Mapping[bytes, Known]:
        """Tell what is known of messages that a walk along the queue has met, and note that."""

    def settle(self, tenant_id: str, ids: Collection[UUID], outcome: Outcome) -> None:
        """Note what became of letters: they are listed no more, and counted in the same breath."""

    def forget(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """Forget settled letters whose messages have left the queue."""

    def forget_missing(self, tenant_id: str, *, walk: UUID, older_than: float) -> int:
        """Forget what a walk along the whole queue has not met; tell how many were listed.

        Only letters that are more than `older_than` seconds old: those that were in the queue
        when the walk began.
        """

    def drop(self, tenant_id: str) -> None:
        """Forget a tenant's letters, all of them."""
