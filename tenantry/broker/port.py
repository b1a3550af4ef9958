"""What a broker promises. Deliveries come in on its thread; everything else may come from any."""

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
    """The broker takes no messages now, for a reason that its publishers may know."""


class MessagesRefusedError(BrokerUnavailableError):
    """The broker refuses messages and does not say why: a queue is full, or failing."""


class BacklogFullError(BrokerUnavailableError):
    """As much of a tenant waits as may; the same call succeeds once some of it is stored."""


class NotOursError(BrokerError):
    """Something of that name is another installation's; it was not touched.

    `here` tells whether that one has rights in our own virtual host as well.
    """

    def __init__(self, message: str, *, here: bool) -> None:
        super().__init__(message)
        self.here = here


class UnroutableError(BrokerError):
    """No queue takes the message: the exchange or the topic does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue that is consumed, and the topic and partition its messages belong to.

    Of an `ordered` one everything is delivered in the order of publishing, and once more from the
    first that is not settled.
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
        """What a message for this queue is published with, to the tenant's exchange."""
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
    """Whether consumers of the tenant's own read it, from queues of their group."""
    topic_partitions: tuple[int, ...] = ()
    """How many partitions each of its topics has; where nothing is said, `partitions`."""
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
        """Tell how many partitions one of its topics has."""
        if not self.topic_partitions:
            return self.partitions
        return self.topic_partitions[self.topics.index(topic)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLimits:
    """Which limits, by the names of `Limits`, a broker can hold a tenant to; `broker` names it."""

    broker: str
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A broker user's way in, by the one URL that is set. The password is kept nowhere."""

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
    """A salted hash the broker takes in place of a password."""

    value: str = field(repr=False)


class PasswordHashes(Protocol):
    """Keeps the hashes of tenants' passwords, so that lost users can be made again.

    A hash is pending until it is confirmed: by `confirm`, or by the journal in the transaction
    that records a tenant as provisioned, its password as rotated or its consumer access as
    granted. Revoked access is forgotten in that way, too. Every call is committed when
    it returns. Raises `StoreUnavailableError`.
    """

    def propose(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Keep the hash of a tenant's user as pending, in place of another pending one."""

    def confirm(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Put the pending hash, if there is one, in place of the confirmed one."""

    def load(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> PasswordHash | None:
        """Give the confirmed hash of a tenant's user, or None."""

    def remove(self, tenant_id: str) -> None:
        """Forget a tenant's hashes, of both users; forgetting none is no error."""

    def all(self, kind: UserKind = UserKind.PRODUCER) -> Mapping[str, PasswordHash]:
        """Give every tenant's confirmed hash, in one query."""


class Delivery(NamedTuple):
    """A message from a queue, to be settled by its `tag`, which rises by one on its channel."""

    tag: int
    redelivered: bool
    message: Incoming


class DeliverySink(Protocol):
    """Who receives a subscription's deliveries. Called on the broker's thread: must not block.

    Every call names the channel's `generation`: tags of an older one mean nothing any more.
    """

    def consuming(self, generation: int) -> None:
        """Every queue is being consumed on a new channel."""

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        """Deliveries have come in, in the order of their tags."""

    def cancelled(self, generation: int) -> None:
        """The consumers are cancelled as asked; no delivery follows in this generation."""

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        """The channel is gone, and with it every unsettled delivery: they will come again.

        The subscription is taken up again by itself, unless `missing`: a queue is not there, or
        was deleted; then it waits for `resubscribe`.
        """

    def silent(self, queues: Sequence[str]) -> None:
        """These queues exist and do not answer; they are asked on and on. May come again."""


class Subscription(Protocol):
    """One tenant's consumption: a channel with a consumer a queue. Callable from any thread."""

    @property
    def window(self) -> int:
        """How many deliveries of one queue may be unsettled just now: the prefetch, or fewer."""

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        """Reject `rejects` (to the dead-letter exchange), ack `acks`, then all others up to a tag.

        Of an older generation, it does nothing.
        """

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Let `prefetch` more deliveries of a queue come, whatever is unsettled of it.

        Those stay with the channel and are to be settled as before. Of an older generation, or
        once cancelled, it does nothing.
        """

    def cancel(self) -> None:
        """Stop deliveries; `cancelled` answers. The channel stays open to settle what came."""

    def resubscribe(self) -> None:
        """Begin again on a new channel."""

    def close(self) -> None:
        """Give up the channel, after what was settled before this call has been sent."""


class Consuming(Protocol):
    """Takes up subscriptions."""

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> Subscription:
        """Consume `queues` on a channel of their own, each with at most `prefetch` unsettled.

        Where it has a budget in bytes a broker may give fewer. `Subscription.renew_prefetch` lets
        more of one queue come.

        Never raises for an absent broker: it is consumed as soon as it can be.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to be published. Durable; `headers` may hold what JSON holds.

    `properties` are those of a message that a browser of dead letters gave: they go out again
    unchanged, beside `headers`, and then `content_type` says nothing, nor `message_id`, unless
    they have none.
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

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Return once the broker has confirmed every message.

        Raises `UnroutableError`, `BrokerUnavailableError` (some may have been taken: publish
        again with the same message ids); of these, where a tenant's backlog is full,
        `BacklogFullError`, or `MessagesRefusedError` where the broker does not tell.
        """


class Administration(Protocol):
    """Makes and removes tenants' objects. Every call is idempotent and bounded in time.

    Users belong to the whole server, which others may use as well. A user of another installation
    is never touched: `NotOursError` says whose it is. `known` is the hash kept for a tenant, if
    there is one: it may prove that a user without a mark is ours. A broker that has no users of a
    `kind` raises `BrokerError` where one is to be made.
    """

    def check_owner(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        """Raise `NotOursError` where the name of the tenant's user is taken by another."""

    def claim(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        """Make sure that the tenant's user is ours, before anything else is made of it.

        Where it is missing it is made, without a password and without rights.
        """

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's exchange, queues, bindings and dead-letter queue, where missing.

        With consumer access also the queues of the tenant's consumer group.
        """

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's exchange and all its queues; give how many messages they held.

        The copies in queues of its consumer group don't count.
        """

    def remove_group(self, tenant_id: str) -> None:
        """Delete the queues of the tenant's consumer group, with what is in them."""

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Make the tenant's user with this password and its permissions."""

    def remove_user(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        """Delete the tenant's user and close its connections, unless it is another's."""

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Close the connections of the tenant's user: those of an earlier password end with it.

        To be called once the new password holds, and before anybody is told of it. What can't be
        closed now is closed as soon as it can be; the log says so meanwhile. So is what had begun
        to log in by an earlier password, and is there only later.
        """

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Generate a password; nothing is changed on the broker yet."""

    @property
    def kept_limits(self) -> KeptLimits:
        """Which limits this broker keeps."""

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:
        """Say what holds a tenant to its limits here, as `Survey.limits` tells what there is."""

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """Hold the tenant to these limits, and to no others; what the broker can't keep is let be.

        Its users and queues must be there. What is open beyond a limit stays open. Raises
        `NotOursError`.
        """

    def survey(self) -> Survey:
        """Give what there is of all tenants together, in a few calls however many they are."""

    def check(self) -> None:
        """Raise `BrokerError` with a clear line where the broker can't be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """What lies in a tenant's queues: `ready` and `unsettled` in those that are consumed."""

    ready: int = 0
    unsettled: int = 0
    dead_letters: int = 0


class Queues(Protocol):
    """Tells how full queues are."""

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count what lies in each tenant's queues, in one call, as of 5 seconds ago at most.

        Raises `BrokerError`.
        """


class Probe(NamedTuple):
    """Users in the place of a tenant's: who sends, and who consumes, if it has such a user."""

    sender: Credentials
    reader: Credentials | None = None


class Excess(NamedTuple):
    """A right that a tenant's user has and should not: on whose, and on what."""

    owner: str
    action: Literal["write", "read", "configure"]
    target: str


class Probes(Protocol):
    """Makes users that may on the broker what a tenant's users really may, at this moment."""

    @property
    def management_address(self) -> str | None:
        """Where the broker's management API is, if it has one: a URL without a user."""

    def sweep(self) -> None:
        """Remove what a daemon that died has left. Raises `BrokerError`."""

    def several(self) -> AbstractContextManager[None]:
        """Say that several tenants' probes follow, one after another: what is dear is made once.

        What of it is left at the end is removed. Raises `BrokerError` then.
        """

    def probe(self, tenant_id: str) -> AbstractContextManager[Probe]:
        """Make such users, who may do nothing any more at the end. Raises `BrokerError`."""

    def excess(self, tenant_id: str) -> Sequence[Excess]:
        """Name the rights of the tenant's users that no attempt would show. Raises `BrokerError`.

        There are some where rights are given on what can't be tried without harm.
        """


class DeadLettersBusyError(BrokerError):
    """Another call browses the tenant's dead letters already."""


class QueuedDeadLetter(NamedTuple):
    """A message in a dead-letter queue: why the broker put it there, and when, if it tells.

    The message has the topic and partition of the queue it comes from, and its sender's headers
    without the broker's. `properties` are all of the message's, in a form only the broker reads;
    None where the message tells all there is.
    """

    message: Incoming
    reason: str
    died_at: datetime | None
    properties: bytes | None


class DeadLetterBrowser(Protocol):
    """Gives a tenant's dead letters, oldest first. What is not removed stays as it was."""

    @property
    def gone(self) -> bool:
        """Whether all that was removed is known to have left the queue; told at the end.

        Where it is not, a later browser may give such a message again.
        """

    @property
    def complete(self) -> bool:
        """Whether `next`, at its end, has given all that was there at the start.

        It has not where others hold messages of the queue.
        """

    def next(self, most: int) -> list[QueuedDeadLetter]:
        """Give up to `most` further messages; none at the end of what was there at the start.

        Fewer than `most` may be given where they are large.
        """

    def remove(self, indexes: Collection[int]) -> None:
        """Remove messages from the queue, by their place in what `next` gave last."""


class DeadLetters(Protocol):
    """Gives access to tenants' dead-letter queues. Callable from any thread; calls block."""

    def browse(self, tenant_id: str) -> AbstractContextManager[DeadLetterBrowser]:
        """Begin to browse; a tenant without a queue has no dead letters.

        One browser of a tenant at a time: another raises `DeadLettersBusyError` at once, for
        waiting would hold a thread. Every call may raise `BrokerUnavailableError`: what was not
        removed is in the queue, what was removed may be.
        """
