"""What a message store promises. One contract suite holds every adapter to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias


class Incoming(NamedTuple):
    """A message on its way into the store.

    A named tuple, not a dataclass: one is made for every delivery, and it costs a third.
    `published_at_ms` is milliseconds since 1970 (UTC) or None.
    """

    id: str | None
    topic: str
    partition: int
    body: bytes
    content_type: str | None
    headers: Mapping[str, object] | None
    published_at_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstorable:
    """A message the store will never take: `index` in its batch, a stable `reason`, the `error`."""

    index: int
    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """What became of a batch: stored + duplicates + len(unstorable) is its length."""

    stored: int
    duplicates: int
    unstorable: tuple[Unstorable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A row of `messages`; exactly one of `payload` (JSON text) and `body` is set."""

    id: str
    tenant_id: str
    position: int
    topic: str
    partition: int
    payload: str | None
    body: bytes | None
    content_type: str | None
    headers: str | None
    published_at: datetime | None
    created_at: datetime


WrittenMessage: TypeAlias = tuple[int, str]
"""A stored message's position, and the text of the JSON object the API shows of it.

Its members are `id`, `tenant_id`, `position`, `topic`, `partition`, `payload` or `body` (base64),
`content_type`, `headers` and `created_at` (RFC 3339 in UTC, with microseconds).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A tenant's running totals since its creation."""

    stored: int
    duplicates: int
    dead_lettered: int


class Order(StrEnum):
    """Which end of a tenant's messages comes first."""

    ASCENDING = "asc"
    DESCENDING = "desc"


class MessageStoreError(Exception):
    """The message store refused or failed."""


class StoreUnavailableError(MessageStoreError):
    """The store can't be reached or is busy; the same call may succeed later."""


class PartitionMissingError(MessageStoreError):
    """The tenant has no partition."""


class MessageStore(Protocol):
    """Keeps tenants' messages apart, each stored once."""

    def create_partition(self, tenant_id: str) -> None:
        """Make the tenant's partition and its counters, unless they are there."""

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition and say how many messages went with it.

        With `retain` nothing is dropped (0). Dropping what is not there is no error (0).
        """

    def store(self, tenant_id: str, batch: Sequence[Incoming]) -> StoreResult:
        """Store a batch, committed when this returns; in one transaction, if nothing is refused.

        A message whose id the tenant has stored before is a duplicate, also within the batch.
        Unstorable messages don't hinder the others. Raises `StoreUnavailableError` (outcome
        unknown: store again), `PartitionMissingError`.
        """

    def page(
        self,
        tenant_id: str,
        *,
        topic: str | None = None,
        after: int | None = None,
        limit: int = 50,
        order: Order = Order.ASCENDING,
    ) -> list[StoredMessage]:
        """Read messages beyond position `after` in the given order; the cost is constant.

        Raises `StoreUnavailableError`, `PartitionMissingError`.
        """

    def written_page(
        self,
        tenant_id: str,
        *,
        topic: str | None = None,
        after: int | None = None,
        limit: int = 50,
        order: Order = Order.ASCENDING,
    ) -> list[WrittenMessage]:
        """Read what `page` reads, as JSON that the store itself has written: much faster."""

    def counts(self, tenant_id: str) -> Counts:
        """Give the tenant's running totals; zeros for an unknown tenant."""
