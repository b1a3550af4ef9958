"""What a message store promises. One contract suite holds every adapter to it."""

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

    A named tuple, not a dataclass: one is made for every delivery, and it costs a third.
    `published_at_ms` is milliseconds since 1970 (UTC) or None. A `receipt` says where the message
    lies in a queue of the store's own database: it is taken out of there as it is stored, in the
    same transaction, and not stored if it has gone.
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
    """A message the store will never take: `index` in its batch, a stable `reason`, the `error`.

    `attempts` is how often it was tried; the last one ended in `error`, the first in `first_error`
    (None: in the same).
    """

    index: int
    reason: str
    error: str
    attempts: int = 1
    first_error: str | None = None


class Tried(NamedTuple):
    """What is known of a message that was tried before: how often, and why that was in vain."""

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
    """What became of a batch: each message is one of these.

    Stored, a duplicate, unstorable, held for another attempt, or left: not looked at for want of
    time, to be given again at once. `failures` are the reasons of attempts that failed by now.
    `reused` are the indexes of those duplicates under whose id something else is stored.
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
    """Which tenant of an id, of those that have had it: its `incarnation`, `since` when it exists.

    `since` is None for the first.
    """

    incarnation: int
    since: datetime | None


FIRST: Final = Whose(1, None)
"""The first tenant of an id, whenever it came."""


def whose(state: TenantState) -> Whose:
    """Tell which tenant of its id a tenant is."""
    return Whose(state.incarnation, state.created_at)


class WrittenMessage(NamedTuple):
    """A stored message as JSON, as in a page; None where the tenant has no such one."""

    text: bytes | None
    whose: Whose = FIRST


class WrittenPage(NamedTuple):
    """A page of stored messages as JSON.

    `text` is `rows` objects with commas between them; the members of each are `id`, `tenant_id`,
    `position`, `topic`, `partition`, `payload` or `body` (base64), `content_type`, `headers` and
    `created_at` (RFC 3339 in UTC, with microseconds). Beyond the position `last` is what follows
    the page, which tells `more` if it is there already. `whose` they are is as of the same moment.
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
"""Of a batch in which every message comes for the first time."""


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
    """Whose messages there is room for: `whole` have partition and counters, `partial` not all.

    Of those that are whole: whose the partition is, and its totals.
    """

    whole: Mapping[str, tuple[Whose, Counts]]
    partial: frozenset[str]


class MessageStore(Protocol):
    """Keeps tenants' messages apart, each stored once."""

    def vacate(self, former: TenantState) -> None:
        """Make room for another tenant of a deleted one's id, before there is one.

        What was retained stays readable by its incarnation, and nothing else of the former is left.
        Returns after the second in which the former ended. Raises `ForeignRowsError`.
        """

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        """Make a tenant's partition and its counters, unless they are there; note whose it is.

        A partition that was detached is attached again, with what is in it. Raises
        `ForeignRowsError` where that is other tenants', too.
        """

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        """Drop the tenant's partition and say how many messages went with it.

        With `retain` nothing is dropped (0). Dropping what is not there is no error (0).
        """

    def partitions(self) -> Partitions:
        """Tell whose partitions there are, in one query of the catalogue.

        Raises `StoreUnavailableError`.
        """

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
    ) -> StoreResult:
        """Store a batch, committed when this returns; in one transaction, if nothing is refused.

        A message whose id the tenant has stored before is a duplicate, also within the batch.
        Unstorable messages don't hinder the others. `again` has the indexes of messages that were
        delivered before: with what `Held` has told of them, or None if that is not known. With
        `in_order` those of one topic and partition are stored in the order of the batch: all
        behind one that is held or left are left, too. Raises `StoreUnavailableError` (outcome
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

        Of large ones it gives fewer than `limit`, one at least.
        Raises `StoreUnavailableError`, `PartitionMissingError`.
        """

    def counts(self, tenant_id: str) -> Counts:
        """Give the tenant's running totals; zeros for an unknown tenant."""


class PageReader(Protocol):
    """Reads messages on an event loop: what `MessageStore.page` reads, as JSON already."""

    async def with_messages(self, beyond: str | None, *, limit: int, order: Order) -> list[str]:
        """Give ids of tenants that have messages, in the order of their bytes, from beyond one.

        Those that have none are passed over at next to no cost. Raises `StoreUnavailableError`.
        """

    async def written_message(
        self, tenant_id: str, message_id: str, *, retained: int | None = None
    ) -> WrittenMessage:
        """Give one message by its id; with `retained` of a former tenant, of that incarnation.

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

        Of large ones it gives fewer than `limit`, one at least.
        With `retained` they are a former tenant's, of that incarnation. A page of very large
        messages may hold fewer than `limit`, though more follow. Raises as `MessageStore.page`
        does.
        """
