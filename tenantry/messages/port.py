"""The message store's promises. One contract suite holds every adapter to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from tenantry.domain.tenant import TenantState
from tenantry.unavailable import UnavailableError


class Incoming(NamedTuple):
    """A message on its way into the store.

    A named tuple, not a dataclass: one is made for every delivery, at a third of the cost.
    `published_at_ms` is milliseconds since 1970 (UTC) or None. A `receipt` locates the message in a
    queue of the store's own database: it is removed from there as it is stored, in the same
    transaction, and not stored if it has gone.
    """

    id: str | None
    topic: str
    partition: int
    body: bytes
    content_type: str | None
    headers: Mapping[str, object] | None
    published_at_ms: int | None
    receipt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstorable:
    """A message the store will never accept: `index` in its batch, a stable `reason`, the `error`.

    `attempts` is how often it was tried; the last attempt ended in `error`, the first in
    `first_error` (None: in the same).
    """

    index: int
    reason: str
    error: str
    attempts: int = 1
    first_error: str | None = None


class Tried(NamedTuple):
    """The earlier attempts at a message: how many, and why they failed."""

    attempts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A message to be given to the store again, with `tried`, in so many `seconds`."""

    index: int
    seconds: float
    tried: Tried


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """What became of a batch's messages.

    Each message is stored, a duplicate, unstorable, held for another attempt, or left: not reached
    in time, to be given again at once. `failures` are the reasons of attempts that failed by now.
    `reused` are the indexes of duplicates under whose id something else is stored.
    """

    stored: int
    duplicates: int
    unstorable: tuple[Unstorable, ...] = ()
    held: tuple[Held, ...] = ()
    left: tuple[int, ...] = ()
    failures: tuple[str, ...] = ()
    reused: tuple[int, ...] = ()


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


class Whose(NamedTuple):
    """Which tenant of an id, of those that have had it: its `incarnation`, and its start.

    `since` is when it began; None for the first.
    """

    incarnation: int
    since: datetime | None


FIRST: Final = Whose(1, None)
"""The first tenant of an id, whenever it came."""


def whose(state: TenantState) -> Whose:
    """Return which tenant of its id a tenant is."""
    return Whose(state.incarnation, state.created_at)


class WrittenMessage(NamedTuple):
    """A stored message as JSON, as in a page; `text` is None if the tenant has no such message."""

    text: bytes | None
    whose: Whose = FIRST


class WrittenPage(NamedTuple):
    """A page of stored messages as JSON.

    `text` is `rows` objects with commas between them; the members of each are `id`, `tenant_id`,
    `position`, `topic`, `partition`, `payload` or `body` (base64), `content_type`, `headers` and
    `created_at` (RFC 3339 in UTC, with microseconds). The next page begins beyond the position
    `last`; `more` tells whether it has messages already. `whose` they are is as of the same moment.
    """

    text: bytes
    last: int
    more: bool
    rows: int = 0
    whose: Whose = FIRST


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A tenant's running totals since its creation; dead letters are counted by their index."""

    stored: int
    duplicates: int
    dead_lettered: int


class Order(StrEnum):
    """Which end of a tenant's messages comes first."""

    ASCENDING = "asc"
    DESCENDING = "desc"


NOTHING: Final[Mapping[int, Tried | None]] = MappingProxyType({})
"""For a batch in which no message was delivered before."""


class MessageStoreError(Exception):
    """The message store refused or failed."""


class StoreUnavailableError(MessageStoreError, UnavailableError):
    """The store can't be reached or is busy; the same call may succeed later."""


class PartitionMissingError(MessageStoreError):
    """The tenant has no partition."""


class ForeignRowsError(MessageStoreError):
    """The tenant's partition was detached by hand, and rows of other tenants put into it.

    It is neither attached again nor dropped. The tenant's messages are stored in it nevertheless.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitions:
    """Which tenants have storage: `whole` ones a partition and counters, `partial` ones not both.

    For the whole ones: which tenant of the id has the partition, and its totals.
    """

    whole: Mapping[str, tuple[Whose, Counts]]
    partial: frozenset[str]


class MessageStore(Protocol):
    """Keeps tenants' messages apart, each stored once."""

    def vacate(self, former: TenantState) -> None:
        """Make room for another tenant of a deleted tenant's id, before it is created.

        Retained messages stay readable by their incarnation, and nothing else of the former tenant
        is left. Returns after the second in which the former tenant ended. Raises
        `ForeignRowsError`.
        """

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        """Make a tenant's partition and its counters, unless they exist; record whose they are.

        A detached partition is attached again, with its rows. Raises `ForeignRowsError` if it holds
        other tenants' rows, too.
        """

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition and return how many messages went with it.

        With `retain` nothing is dropped (0). A missing partition is no error (0).
        """

    def partitions(self) -> Partitions:
        """Return which partitions exist, and whose they are, in one query of the catalogue.

        Raises `StoreUnavailableError`.
        """

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
        more: bool = False,
        beside: bool = False,
    ) -> StoreResult:
        """Store a batch, committed when this returns; in one transaction, if nothing is refused.

        A message whose id the tenant has stored before is a duplicate, also within the batch.
        Unstorable messages don't hinder the others. `again` has the indexes of messages that were
        delivered before: each with `Held.tried`, or None if that is not known. With `in_order`,
        messages of one topic and partition are stored in the order of the batch: all behind a held
        or left one are left, too. With `more`, another batch of the tenant will soon follow, which
        matters to those that wait for their turn; if there are quiet tenants `beside` it, it may
        have to rest before. Raises `StoreUnavailableError` (outcome unknown: store again),
        `PartitionMissingError`.
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

        Large messages make the page shorter than `limit`, but it has one at least. Raises
        `StoreUnavailableError`, `PartitionMissingError`.
        """

    def counts(self, tenant_id: str) -> Counts:
        """Return the tenant's running totals; zeros for an unknown tenant."""


class PageReader(Protocol):
    """Reads messages on an event loop: what `MessageStore.page` reads, already as JSON."""

    async def with_messages(self, beyond: str | None, *, limit: int, order: Order) -> list[str]:
        """Return ids of tenants that have messages, in byte order, beyond the given one.

        Tenants without messages are skipped at next to no cost. Raises `StoreUnavailableError`.
        """

    async def written_message(
        self, tenant_id: str, message_id: str, *, retained: int | None = None
    ) -> WrittenMessage:
        """Return one message by its id; with `retained`, a former tenant's, of that incarnation.

        Raises as `MessageStore.page` does.
        """

    async def written_page(
        self,
        tenant_id: str,
        *,
        topic: str | None,
        after: int | None,
        limit: int,
        order: Order,
        retained: int | None = None,
    ) -> WrittenPage:
        """Read messages beyond position `after` in the given order; the cost is constant.

        Large messages make the page shorter than `limit`, though more follow, but it has one at
        least. With `retained` they are a former tenant's, of that incarnation. Raises as
        `MessageStore.page` does.
        """
