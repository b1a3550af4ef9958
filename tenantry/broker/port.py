"""The broker port. Deliveries arrive on the broker's thread; other calls may come from any."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, Self

from tenantry.broker.survey import Survey
from tenantry.domain import names
from tenantry.domain.limits import Limits
from tenantry.domain.names import UserKind
from tenantry.messages.port import Incoming
from tenantry.unavailable import UnavailableError


class BrokerError(Exception):
    """The broker refused or failed."""


class BrokerUnavailableError(BrokerError, UnavailableError):
    """The broker can't be reached now; the same call may succeed later."""


class BrokerBlockedError(BrokerUnavailableError):
    """The broker accepts no messages now; the reason may be told to publishers."""


class MessagesRefusedError(BrokerUnavailableError):
    """The broker refuses messages without a reason: a queue is full, or failing."""


class BacklogFullError(BrokerUnavailableError):
    """The tenant's backlog is full; the same call succeeds once some of it is stored."""


class NotOursError(BrokerError):
    """An object of that name belongs to another installation; it was not touched.

    `here` tells whether it has rights in our own virtual host as well.
    """

    def __init__(self, message: str, *, here: bool) -> None:
        super().__init__(message)
        self.here = here


class UnroutableError(BrokerError):
    """No queue takes the message: the exchange or the topic does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue that is consumed, and the topic and partition its messages belong to.

    An `ordered` queue delivers in the order of publishing, and redelivers from the first unsettled
    message on.
    """

    name: str
    topic: str
    partition: int
    ordered: bool = False

    @classmethod
    def of(cls, tenant_id: str, topic: str, partition: int, *, ordered: bool = False) -> Self:
        """Give a tenant's queue of a topic and partition; the default topic has one."""
        if topic == names.DEFAULT_TOPIC:
            return cls(name=names.queue_name(tenant_id), topic=topic, partition=0)
        name = names.partition_queue_name(tenant_id, topic, partition)
        return cls(name=name, topic=topic, partition=partition, ordered=ordered)

    @property
    def routing_key(self) -> str:
        """The routing key by which the tenant's exchange routes a message to this queue."""
        if self.topic == names.DEFAULT_TOPIC:
            return names.DEFAULT_TOPIC
        return f"{self.topic}.{self.partition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTopology:
    """A tenant's objects on the broker, named as in `tenantry.domain.names`."""

    tenant_id: str
    topics: tuple[str, ...]
    partitions: int
    consumer_access: bool = False
    """Whether the tenant's own consumers read its topics, from the queues of their group."""
    topic_partitions: tuple[int, ...] = ()
    """The number of partitions of each topic; `partitions` if empty."""
    ordered: tuple[str, ...] = ()
    """The topics whose partitions are in order."""

    @property
    def exchange(self) -> str:
        """The exchange that the tenant publishes to."""
        return names.exchange_name(self.tenant_id)

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The names of `queues`."""
        return tuple(queue.name for queue in self.queues())

    def queues(self) -> tuple[QueueSpec, ...]:
        """Give the queues that are consumed: the default one first, then topic by topic."""
        return (
            QueueSpec.of(self.tenant_id, names.DEFAULT_TOPIC, 0),
            *(
                QueueSpec.of(self.tenant_id, topic, partition, ordered=topic in self.ordered)
                for topic in self.topics
                for partition in range(self.partitions_of(topic))
            ),
        )

    def partitions_of(self, topic: str) -> int:
        """Give the number of partitions of a topic."""
        if not self.topic_partitions:
            return self.partitions
        return self.topic_partitions[self.topics.index(topic)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLimits:
    """The limits that a broker can enforce, by the names of `Limits`; `broker` is its name."""

    broker: str
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A broker user's credentials, with the one URL that is set. The password is stored nowhere."""

    username: str
    password: str = field(repr=False)
    amqp_url: str = field(default="", repr=False)
    postgres_url: str = field(default="", repr=False)
    iggy_url: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The URL, whichever kind of broker it leads to."""
        return self.amqp_url or self.postgres_url or self.iggy_url


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordHash:
    """A salted hash that the broker accepts in place of a password."""

    value: str = field(repr=False)


class PasswordHashes(Protocol):
    """Stores the hashes of tenants' passwords, so that lost users can be made again.

    A hash is pending until it is confirmed: by `confirm`, or by the journal in the transaction
    that records a tenant as provisioned, its password as rotated or its consumer access as
    granted. Revoked access is removed in the same way. Every call is committed when
    it returns. Raises `StoreUnavailableError`.
    """

    def propose(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Store the pending hash of a tenant's user, in place of an earlier pending one."""

    def confirm(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Make the pending hash, if there is one, the confirmed one."""

    def load(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> PasswordHash | None:
        """Give the confirmed hash of a tenant's user, or None."""

    def remove(self, tenant_id: str) -> None:
        """Remove a tenant's hashes, of both users, if there are any."""

    def all(self, kind: UserKind = UserKind.PRODUCER) -> Mapping[str, PasswordHash]:
        """Give every tenant's confirmed hash, in one query."""


class Delivery(NamedTuple):
    """A message from a queue, to be settled by its `tag`, which rises by one on its channel."""

    tag: int
    redelivered: bool
    message: Incoming


class DeliverySink(Protocol):
    """Receives a subscription's deliveries. Called on the broker's thread: must not block.

    Every call names the channel's `generation`: tags of an older generation are void.
    """

    def consuming(self, generation: int) -> None:
        """Every queue is being consumed on a new channel."""

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        """Deliveries have come in, in the order of their tags."""

    def cancelled(self, generation: int) -> None:
        """The consumers are cancelled, as requested; no delivery follows in this generation."""

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        """The channel is gone; its unsettled deliveries will be redelivered.

        The subscription goes on by itself on a new channel, unless `missing`: a queue does not
        exist; then it waits for `resubscribe`.
        """

    def silent(self, queues: Sequence[str]) -> None:
        """These queues exist and do not answer; they are asked again and again. May be repeated."""


class Subscription(Protocol):
    """A tenant's subscription: a channel with one consumer per queue. Callable from any thread."""

    @property
    def window(self) -> int:
        """How many deliveries of a queue may be unsettled at present: the prefetch, or fewer."""

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        """Reject `rejects` (to the dead-letter exchange), ack `acks`, then all others up to a tag.

        Does nothing for an older generation.
        """

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Allow `prefetch` more deliveries of a queue, beside its unsettled ones.

        The unsettled ones stay with the channel, to be settled as before. Does nothing for an older
        generation, or once cancelled.
        """

    def cancel(self) -> None:
        """Stop deliveries; `cancelled` answers. The channel stays open for settlements."""

    def resubscribe(self) -> None:
        """Begin again on a new channel."""

    def close(self) -> None:
        """Close the channel, once the settlements before this call are sent."""


class Consuming(Protocol):
    """Starts subscriptions."""

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> Subscription:
        """Consume `queues` on a channel of their own, each with at most `prefetch` unsettled.

        A broker with a budget in bytes may deliver fewer. `Subscription.renew_prefetch` allows more
        of one queue.

        Never raises while the broker is away: consuming begins once it is back.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A durable message to publish; `headers` may hold what JSON holds.

    `properties` are those of a message from a browser of dead letters: they are published
    unchanged, beside `headers`; `content_type` is ignored then, and so is `message_id` if they have
    one.
    """

    exchange: str
    routing_key: str
    body: bytes
    message_id: str | None = None
    content_type: str | None = None
    headers: Mapping[str, object] | None = None
    properties: bytes | None = None


class Publishing(Protocol):
    """Publishes with confirms."""

    @property
    def singly(self) -> bool:
        """Whether each message is confirmed by itself: then they may as well come in portions."""

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Return once the broker has confirmed every message.

        Raises `UnroutableError`, or `BrokerUnavailableError` (some may have been accepted: publish
        again with the same message ids). Its kinds are `BacklogFullError` if the tenant's backlog
        is full, and `MessagesRefusedError` if the broker gives no reason.
        """


class LoopPublishing(Protocol):
    """Publishes with confirms on an event loop, without a thread."""

    async def publish(self, messages: Sequence[Outgoing], *, within: float) -> None:
        """As `Publishing.publish`, `within` so many seconds: a few small ones of one exchange."""


class Administration(Protocol):
    """Makes and removes tenants' objects. Every call is idempotent and bounded in time.

    Users belong to the whole server, which other installations may use as well. Their users are
    never touched: `NotOursError` names the installation. `known` is the tenant's stored hash, if
    there is one: it may prove that a user without a mark is ours. A broker without users of a
    `kind` raises `BrokerError` if one is to be made.
    """

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Raise `NotOursError` if another installation has the name of the tenant's user."""

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Make sure that the tenant's user is ours, before any other object is made.

        A missing user is made, without a password and without rights.
        """

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's missing exchange, queues, bindings and dead-letter queue.

        With consumer access also the queues of the tenant's consumer group.
        """

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's exchange and all its queues; give how many messages they held.

        Copies in the queues of its consumer group are not counted.
        """

    def remove_group(self, tenant_id: str) -> None:
        """Delete the queues of the tenant's consumer group, with their messages."""

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Make the tenant's user with this password and its permissions."""

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Delete the tenant's user and close its connections; never another installation's."""

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Close the connections of the tenant's user, as an earlier password opened them.

        Call it once the new password is in force, and before it is shown. A connection that can't
        be closed now is closed as soon as possible, and logged until then. The same holds for a
        connection whose login began with an earlier password and ends later.
        """

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Generate a password; nothing changes on the broker yet."""

    @property
    def kept_limits(self) -> KeptLimits:
        """The limits that this broker can enforce."""

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:
        """Give the settings that enforce a tenant's limits here, comparable to `Survey.limits`."""

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """Enforce these limits and no others; limits that the broker can't enforce are ignored.

        The tenant's users and queues must exist. Connections beyond a limit stay open. Raises
        `NotOursError`.
        """

    def survey(self) -> Survey:
        """Survey the objects of all tenants, in a few calls, however many tenants there are."""

    def check(self) -> None:
        """Raise `BrokerError`, with a clear line, if the broker can't be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """Counts of messages in a tenant's queues: `ready` and `unsettled` are of the consumed ones."""

    ready: int = 0
    unsettled: int = 0
    dead_letters: int = 0


class Queues(Protocol):
    """Counts messages in queues."""

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count the messages in each tenant's queues, in one call; at most 5 seconds old.

        Raises `BrokerError`.
        """


class Probe(NamedTuple):
    """Probe users in place of a tenant's: its producer, and its consumer if it has one."""

    sender: Credentials
    reader: Credentials | None = None


class Excess(NamedTuple):
    """A right that a tenant's user has and should not have, with the object and its owner."""

    owner: str
    action: Literal["write", "read", "configure"]
    target: str


class Probes(Protocol):
    """Makes probe users with the rights that a tenant's users really have at the moment."""

    @property
    def management_address(self) -> str | None:
        """The URL of the broker's management API, if it has one, without a user."""

    def sweep(self) -> None:
        """Remove the probe users of a daemon that has died. Raises `BrokerError`."""

    def several(self) -> AbstractContextManager[None]:
        """Enclose the probes of several tenants, one after another: costly parts are made once.

        They are removed at the end. Raises `BrokerError` then.
        """

    def probe(self, tenant_id: str) -> AbstractContextManager[Probe]:
        """Make probe users for a tenant, retired after the block. Raises `BrokerError`."""

    def excess(self, tenant_id: str) -> Sequence[Excess]:
        """Name wrong rights of the tenant's users that attempts can't show. Raises `BrokerError`.

        Some rights can't be tried without doing harm.
        """


class DeadLettersBusyError(BrokerError):
    """Another call is browsing the tenant's dead letters."""


class QueuedDeadLetter(NamedTuple):
    """A message in a dead-letter queue, with the broker's reason and time, if it gives them.

    The message has the topic and partition of its former queue, and its sender's headers without
    the broker's. `properties` are all of the message's properties, in a form for the broker alone;
    None if the message has all of them.
    """

    message: Incoming
    reason: str
    died_at: datetime | None
    properties: bytes | None


class DeadLetterBrowser(Protocol):
    """Browses a tenant's dead letters, oldest first. Messages not removed stay unchanged."""

    @property
    def gone(self) -> bool:
        """Whether every removed message is known to have left the queue; valid at the end.

        Otherwise a later browser may give such a message again.
        """

    @property
    def complete(self) -> bool:
        """Whether `next`, at its end, has given every message that was there at the start.

        It has not if other consumers hold messages of the queue.
        """

    def next(self, most: int) -> list[QueuedDeadLetter]:
        """Give up to `most` further messages; none once those of the start are through.

        Fewer than `most` may be given if they are large.
        """

    def remove(self, indexes: Collection[int]) -> None:
        """Remove messages from the queue, by their index in the latest result of `next`."""


class DeadLetters(Protocol):
    """Gives access to tenants' dead-letter queues. Callable from any thread; calls block."""

    def browse(self, tenant_id: str) -> AbstractContextManager[DeadLetterBrowser]:
        """Begin to browse; a tenant without a queue has no dead letters.

        One browser per tenant at a time: a second one raises `DeadLettersBusyError` at once, as
        waiting would hold a thread. Every call may raise `BrokerUnavailableError`: then messages
        that were not removed are in the queue, and removed ones may be.
        """
