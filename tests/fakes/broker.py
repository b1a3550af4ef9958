"""A broker in memory: the port's promises without a server, and faults at a call, for tests."""

from __future__ import annotations

import queue
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tenantry.broker import topology as layout
from tenantry.broker.port import (
    BacklogFullError,
    BrokerUnavailableError,
    Credentials,
    DeliverySink,
    KeptLimits,
    NotOursError,
    Outgoing,
    PasswordHash,
    QueueCounts,
    QueueSpec,
    TenantTopology,
    UnroutableError,
)
from tenantry.broker.survey import Survey, User
from tenantry.domain import names
from tenantry.domain.limits import OF_THE_BROKER, Limits
from tenantry.domain.names import UserKind
from tests.fakes.broker_subscription import MemorySubscription, QueuedMessage

_STOP: Final = None


@dataclass(slots=True)
class _Queue:
    arguments: Mapping[str, str | int]
    dead_letter_to: tuple[str, str] | None
    ready: deque[QueuedMessage] = field(default_factory=deque)


class MemoryBroker:
    """Administration, consuming and publishing at once, all on the same queues.

    Callable from any thread. Sinks are called by `run`, on the thread its owner gave it, or by
    `deliver`, on the caller's, and only there. `disconnect`, `connect`, `drop_channels` and
    `delete_queue` are the faults.
    """

    singly = True

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._queues: dict[str, _Queue] = {}
        self._routes: dict[str, defaultdict[str, list[str]]] = {}
        self._subscriptions: list[MemorySubscription] = []
        self._connected = True
        self._passwords = 0
        self.users: dict[str, PasswordHash] = {}
        self.taken: set[str] = set()
        self.ended: list[str] = []
        self._limits: dict[str, Limits] = {}

    # Running.

    def run(self) -> None:
        """Call sinks until `stop`; belongs on a thread of its own."""
        while (job := self._jobs.get()) is not _STOP:
            job()

    def stop(self) -> None:
        """End `run` after what was asked for before."""
        self._jobs.put(_STOP)

    def deliver(self) -> None:
        """Call sinks here and now, until nothing is left to tell them."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not _STOP:
                job()

    # Faults.

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._connected

    def disconnect(self) -> None:
        """Go away: every channel is lost, every call fails."""
        with self._lock:
            self._connected = False
            for subscription in self._subscriptions:
                self._jobs.put(partial(subscription.lose, "the broker has gone", missing=False))

    def connect(self) -> None:
        """Come back, with all queues as they were."""
        with self._lock:
            self._connected = True
            for subscription in self._subscriptions:
                self._jobs.put(subscription.take_up)

    def drop_channels(self) -> None:
        """Close every channel and let it be opened again."""
        with self._lock:
            for subscription in self._subscriptions:
                self._jobs.put(partial(subscription.lose, "the channel was closed", missing=False))
                self._jobs.put(subscription.take_up)

    def delete_queue(self, name: str) -> int:
        """Delete a queue under its consumers; give how many messages it held ready."""
        with self._lock:
            gone = self._queues.pop(name, None)
            for routes in self._routes.values():
                for targets in routes.values():
                    if name in targets:
                        targets.remove(name)
            for subscription in self._subscriptions:
                if subscription.reads(name):
                    lost = partial(subscription.lose, "a queue was deleted", missing=True)
                    self._jobs.put(lost)
            return 0 if gone is None else len(gone.ready)

    def messages(self, name: str) -> list[Outgoing]:
        """List the messages ready in a queue, oldest first."""
        with self._lock:
            found = self._queues.get(name)
            return [] if found is None else [message.outgoing for message in found.ready]

    # Administration.

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Raise `NotOursError` where the user's name is among `taken`."""
        with self._lock:
            self._reach()
            name = names.username(tenant_id, kind)
            if name in self.taken:
                raise NotOursError(f"user {name!r} is another installation's", here=False)

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Remember a user that has no password yet."""
        with self._lock:
            self.check_owner(tenant_id, known, kind)
            self.users.setdefault(names.username(tenant_id, kind), PasswordHash(value=""))

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """Remember that the user's connections were closed."""
        with self._lock:
            self._reach()
            self.ended.append(names.username(tenant_id, kind))

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's exchange and queues, where missing."""
        with self._lock:
            self._reach()
            plan = layout.plan(topology, "classic")
            for exchange in plan.exchanges:
                self._routes.setdefault(exchange, defaultdict(list))
            for wanted in plan.queues:
                target = wanted.arguments.get("x-dead-letter-exchange")
                key = wanted.arguments.get("x-dead-letter-routing-key")
                dead_letters = None if target is None else (str(target), str(key))
                self._queues.setdefault(wanted.name, _Queue(wanted.arguments, dead_letters))
            for binding in plan.bindings:
                targets = self._routes[binding.exchange][binding.routing_key]
                if binding.queue not in targets:
                    targets.append(binding.queue)

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's exchange and all its queues; give how many messages they held."""
        with self._lock:
            self._reach()
            self._routes.pop(names.exchange_name(tenant_id), None)
            self._limits.pop(tenant_id, None)
            owned = [name for name in self._queues if layout.owner(name) == tenant_id]
            held = {name: self.delete_queue(name) for name in owned}
            return sum(count for name, count in held.items() if not layout.is_group_queue(name))

    def remove_group(self, tenant_id: str) -> None:
        """Delete the queues of the tenant's consumer group."""
        with self._lock:
            self._reach()
            for name in [one for one in self._queues if layout.is_group_queue(one)]:
                if layout.owner(name) == tenant_id:
                    self.delete_queue(name)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Remember the user and its password's hash."""
        with self._lock:
            self.check_owner(tenant_id, password, kind)
            self.users[names.username(tenant_id, kind)] = password

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Forget the user."""
        with self._lock:
            self._reach()
            self.users.pop(names.username(tenant_id, kind), None)

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Make up a password."""
        with self._lock:
            self._passwords += 1
            name, password = names.username(tenant_id, kind), f"password-{self._passwords}"
            credentials = Credentials(
                username=name, password=password, amqp_url=f"amqp://{name}:{password}@memory/"
            )
            return credentials, PasswordHash(value=f"hash of {password}")

    @property
    def kept_limits(self) -> KeptLimits:
        """All of them."""
        return KeptLimits(broker="the broker in memory", names=frozenset(OF_THE_BROKER))

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:
        """Say what holds the tenant to its limits."""
        return {"memory": limits.of_the_broker} if limits.of_the_broker else {}

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """Remember the limits, of which that of messages is kept."""
        with self._lock:
            self._reach()
            self._limits[topology.tenant_id] = limits

    def survey(self) -> Survey:
        """Give what there is; whoever is made here has the right permissions."""
        with self._lock:
            self._reach()
            users: dict[str, User] = {}
            for name, password in self.users.items():
                users[name] = User(
                    password_hash=password.value,
                    permissions=layout.permissions(
                        layout.owner_of(name) or "", UserKind(name.rpartition("_")[2])
                    ),
                )
            return Survey(
                exchanges=dict.fromkeys(self._routes, "direct"),
                queues={name: one.arguments for name, one in self._queues.items()},
                bindings=frozenset(
                    (exchange, queue, key)
                    for exchange, routes in self._routes.items()
                    for key, queues in routes.items()
                    for queue in queues
                ),
                users=users,
                copies=True,
                limits={
                    one: {"memory": limits.of_the_broker}
                    for one, limits in self._limits.items()
                    if limits.of_the_broker
                },
                consumed=frozenset(
                    name
                    for name in self._queues
                    if any(one.reads(name) for one in self._subscriptions)
                ),
            )

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count what is ready and unsettled in each tenant's queues."""
        with self._lock:
            self._reach()
            unsettled = Counter(
                name for one in self._subscriptions for name in one.unsettled_queues()
            )
            return layout.counts_by_tenant(
                {name: (len(found.ready), unsettled[name]) for name, found in self._queues.items()}
            )

    def check(self) -> None:
        """Raise `BrokerUnavailableError` while the broker is away."""
        self._reach()

    # Publishing.

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Put messages into their queues; those that have one are kept though others have none."""
        with self._lock:
            self._reach()
            for tenant_id, limits in self._limits.items():
                most, stream = limits.backlog_messages, names.exchange_name(tenant_id)
                waiting = self.queue_counts()[tenant_id].ready if most is not None else 0
                if most is not None and waiting >= most and messages[0].exchange == stream:
                    raise BacklogFullError(f"the backlog of tenant {tenant_id} is full")
            unroutable = [message for message in messages if not self._route(message)]
            if unroutable:
                first = unroutable[0]
                raise UnroutableError(
                    f"no queue of {first.exchange!r} takes the key {first.routing_key!r}"
                )

    # Consuming.

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> MemorySubscription:
        """Consume queues, now or as soon as the broker is there."""
        subscription = MemorySubscription(self, queues, prefetch=prefetch, sink=sink)
        with self._lock:
            self._subscriptions.append(subscription)
        self._jobs.put(subscription.take_up)
        return subscription

    # For subscriptions.

    def call(self, job: Callable[[], None]) -> None:
        """Have something done where sinks are called."""
        self._jobs.put(job)

    def take_up(self, subscription: MemorySubscription) -> None:
        """Open a channel, unless it was closed for good."""
        with self._lock:
            known = subscription in self._subscriptions
        if known:
            subscription.take_up()

    def seek(self, subscription: MemorySubscription) -> None:
        """Do nothing: it takes its queues up when it is told to."""

    def forget(self, subscription: MemorySubscription) -> None:
        """Leave a subscription out of everything from now on."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def missing(self, queues: Sequence[QueueSpec]) -> str | None:
        """Give the first of some queues that does not exist."""
        with self._lock:
            return next((one.name for one in queues if one.name not in self._queues), None)

    def take(self, name: str, limit: int) -> list[QueuedMessage]:
        """Take up to `limit` messages off a queue."""
        with self._lock:
            found = self._queues.get(name)
            if found is None:
                return []
            return [found.ready.popleft() for _ in range(min(limit, len(found.ready)))]

    def give_back(self, messages: Sequence[tuple[str, QueuedMessage]]) -> None:
        """Put unsettled messages back where they were."""
        with self._lock:
            for name, message in reversed(messages):
                message.redelivered = True
                if name in self._queues:
                    self._queues[name].ready.appendleft(message)
            self._wake()

    def dead_letter(self, name: str, message: QueuedMessage) -> None:
        """Send a rejected message from a queue to its dead-letter exchange."""
        with self._lock:
            found = self._queues.get(name)
            if found is not None and found.dead_letter_to is not None:
                exchange, key = found.dead_letter_to
                self._route(message.outgoing, exchange, key)

    def _reach(self) -> None:
        if not self._connected:
            raise BrokerUnavailableError("the broker can't be reached")

    def _route(
        self, message: Outgoing, exchange: str | None = None, key: str | None = None
    ) -> bool:
        routes = self._routes.get(message.exchange if exchange is None else exchange)
        targets = [] if routes is None else routes[message.routing_key if key is None else key]
        for name in targets:
            self._queues[name].ready.append(QueuedMessage(message))
        if targets:
            self._wake()
        return bool(targets)

    def _wake(self) -> None:
        for subscription in self._subscriptions:
            self._jobs.put(subscription.fetch)
