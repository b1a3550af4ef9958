"""What actors stand on, in memory; faults at the test's command."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any

from tenantry.broker import topology as layout
from tenantry.broker.port import (
    BrokerUnavailableError,
    Credentials,
    Delivery,
    DeliverySink,
    KeptLimits,
    NotOursError,
    PasswordHash,
    QueueCounts,
    QueueSpec,
    TenantTopology,
)
from tenantry.broker.survey import Survey, User
from tenantry.domain import names
from tenantry.domain.limits import OF_THE_BROKER, Limits
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import TenantState
from tenantry.journal.port import RecordedEvent
from tenantry.messages.port import (
    FIRST,
    NOTHING,
    Counts,
    Held,
    Incoming,
    Partitions,
    StoreResult,
    Tried,
    Unstorable,
    Whose,
)
from tenantry.messages.sql_access import SqlCredentials
from tenantry.projections.tenants import PasswordChange, password_change
from tests.waiting import DEADLINE


class Faults:
    """Errors to be raised at named steps, each so many times."""

    def __init__(self) -> None:
        self._planned: dict[str, list[BaseException]] = {}
        self.steps: list[str] = []

    def plan(self, step: str, error: BaseException, times: int = 1) -> None:
        self._planned.setdefault(step, []).extend([error] * times)

    def clear(self) -> None:
        self._planned.clear()

    def reach(self, step: str) -> None:
        self.steps.append(step)
        planned = self._planned.get(step)
        if planned:
            # A fresh one each time: a raised exception gathers its traceback.
            raise copy(planned.pop(0))


class FakeStore:
    """A message store. A body of `bad` is unstorable; `gate` holds batches back while cleared.

    `fails3` fails three times, `left` is left over behind the second place of a batch.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self.rows: dict[str, dict[str, bytes]] = {}
        self.retained: dict[tuple[str, int], dict[str, bytes]] = {}
        self.whose: dict[str, Whose] = {}
        self.deliveries: Counter[tuple[str, str | None]] = Counter()
        self.totals: dict[str, Counter[str]] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.gates: dict[bytes, threading.Event] = {}
        self.pause = 0.0
        self.attempts = 5
        self.inside = 0
        self.most_inside = 0

    def vacate(self, former: TenantState) -> None:
        self._faults.reach("vacate")
        rows = self.rows.pop(former.tenant_id, None)
        if rows is not None:
            self.retained[former.tenant_id, former.incarnation] = rows
        self.totals.pop(former.tenant_id, None)

    def create_partition(self, tenant_id: str, whose: Whose = FIRST) -> None:
        self._faults.reach("create_partition")
        self.whose[tenant_id] = whose
        self.rows.setdefault(tenant_id, {})
        self.totals.setdefault(tenant_id, Counter())

    def drop_partition(self, tenant_id: str, *, retain: bool) -> int:
        self._faults.reach("drop_partition")
        return 0 if retain else len(self.rows.pop(tenant_id, {}))

    def partitions(self) -> Partitions:
        self._faults.reach("partitions")
        whole = {one: (self.whose.get(one, FIRST), self.counts(one)) for one in self.rows}
        return Partitions(whole=whole, partial=frozenset())

    def store(
        self,
        tenant_id: str,
        batch: Sequence[Incoming],
        again: Mapping[int, Tried | None] = NOTHING,
        *,
        in_order: bool = False,
    ) -> StoreResult:
        self._faults.reach(f"store {tenant_id}")
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            assert self.gate.wait(DEADLINE)
            for message in batch:
                gate = self.gates.get(message.body)
                assert gate is None or gate.wait(DEADLINE)
        finally:
            with self._lock:
                self.inside -= 1
        with self._lock:
            rows = self.rows[tenant_id]
            stored = duplicates = 0
            unstorable, held, left, reused = [], [], [], []
            blocked: set[tuple[str, int]] = set()
            for index, message in enumerate(batch):
                lane = (message.topic, message.partition)
                if lane in blocked:
                    left.append(index)
                    continue
                identity = message.id or f"generated-{len(rows)}"
                self.deliveries[tenant_id, identity] += 1
                tried = again.get(index) or Tried(0, "")
                attempts = tried.attempts + 1
                if message.body.startswith(b"left") and index >= 2:
                    left.append(index)
                elif message.body.startswith(b"fails") and attempts <= int(message.body[5:]):
                    if attempts == self.attempts:
                        unstorable.append(
                            Unstorable(index=index, reason="no", error="no", attempts=attempts)
                        )
                    else:
                        now = Tried(attempts, "no")
                        held.append(Held(index=index, seconds=self.pause, tried=now))
                        if in_order:
                            blocked.add(lane)
                elif message.body == b"bad":
                    unstorable.append(Unstorable(index=index, reason="not_json", error="bad"))
                elif identity in rows:
                    duplicates += 1
                    if rows[identity] != message.body:
                        reused.append(index)
                else:
                    rows[identity] = message.body
                    stored += 1
            totals = self.totals[tenant_id]
            totals.update(stored=stored, duplicates=duplicates, dead_lettered=len(unstorable))
        return StoreResult(
            stored=stored,
            duplicates=duplicates,
            unstorable=tuple(unstorable),
            held=tuple(held),
            left=tuple(left),
            reused=tuple(reused),
            failures=tuple(one.tried.reason for one in held),
        )

    def page(self, tenant_id: str, **_: Any) -> list[Any]:
        raise NotImplementedError

    def counts(self, tenant_id: str) -> Counts:
        totals = self.totals.get(tenant_id, Counter())
        return Counts(
            stored=totals["stored"],
            duplicates=totals["duplicates"],
            dead_lettered=totals["dead_lettered"],
        )


class FakeSubscription:
    """A tenant's channel. It keeps what the broker would: unsettled and requeued messages."""

    def __init__(self, queues: Sequence[QueueSpec], sink: DeliverySink) -> None:
        self.queues = queues
        self.sink = sink
        self.generation = 0
        self.next_tag = 1
        self.unsettled: dict[int, Incoming] = {}
        self.requeued: list[Incoming] = []
        self.acked: list[int] = []
        self.rejected: list[Incoming] = []
        self.acks = 0
        self.open = False
        self.consuming = False
        self.resubscribed = 0
        self.widened: list[tuple[int, QueueSpec]] = []
        self.window = 4000
        self._successor: FakeSubscription | None = None
        self._lock = threading.RLock()

    def connect(self) -> None:
        with self._lock:
            self.generation += 1
            self.next_tag = 1
            self.open = self.consuming = True
            self.sink.consuming(self.generation)
            again, self.requeued = self.requeued, []
            if again:
                self.deliver(again, redelivered=True)

    def deliver(self, messages: Sequence[Incoming], *, redelivered: bool = False) -> None:
        with self._lock:
            if not self.consuming:
                self.requeued.extend(messages)
                return
            batch = []
            for message in messages:
                self.unsettled[self.next_tag] = message
                batch.append(Delivery(self.next_tag, redelivered, message))
                self.next_tag += 1
            self.sink.deliveries(self.generation, batch)

    def lose(self, *, missing: bool = False) -> None:
        with self._lock:
            self.open = self.consuming = False
            self.requeued = [*self.unsettled.values(), *self.requeued]
            self.unsettled = {}
            self.sink.lost(self.generation, "as planned", missing=missing)

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        with self._lock:
            if generation != self.generation or not self.open:
                return
            self.acks += 1
            for tag in rejects:
                self.rejected.append(self.unsettled.pop(tag))
            for tag in acks:
                del self.unsettled[tag]
                self.acked.append(tag)
            if ack_up_to is not None:
                assert ack_up_to in self.unsettled, "the broker would close the channel"
                for tag in [tag for tag in self.unsettled if tag <= ack_up_to]:
                    self.acked.append(tag)
                    del self.unsettled[tag]

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        self.widened.append((generation, queue))

    def cancel(self) -> None:
        with self._lock:
            self.consuming = False
            self.sink.cancelled(self.generation)

    def resubscribe(self) -> None:
        with self._lock:
            self.resubscribed += 1
            if self.open:
                self.lose()
            self.connect()

    def close(self) -> None:
        with self._lock:
            self.open = self.consuming = False
            self.requeued = [*self.unsettled.values(), *self.requeued]
            self.unsettled = {}
            if self._successor is not None:
                self._hand_over(self._successor)

    def give_way(self, successor: FakeSubscription) -> None:
        """Leave what is requeued to the tenant's next channel, now and when this one closes."""
        with self._lock:
            self._successor = successor
            self._hand_over(successor)

    def _hand_over(self, successor: FakeSubscription) -> None:
        again, self.requeued = self.requeued, []
        if again:
            successor.deliver(again, redelivered=True)


class FakeBroker:
    """Subscriptions by tenant, the latest of each. `up` tells whether channels open at once."""

    def __init__(self) -> None:
        self.up = True
        self.subscriptions: dict[str, FakeSubscription] = {}
        self.prefetch: dict[str, int] = {}

    def subscribe(
        self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink
    ) -> FakeSubscription:
        tenant_id = queues[0].name.removeprefix("tenant_").removesuffix("_queue")
        before = self.subscriptions.get(tenant_id)
        subscription = FakeSubscription(queues, sink)
        if before is not None:
            before.give_way(subscription)
        self.subscriptions[tenant_id] = subscription
        self.prefetch[tenant_id] = prefetch
        if self.up:
            subscription.connect()
        return subscription


class FakeAdministration:
    """Objects as sets of names."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.topologies: dict[str, TenantTopology] = {}
        self.users: dict[str, PasswordHash] = {}
        self.consumers: dict[str, PasswordHash] = {}
        self.taken: dict[str, bool] = {}
        """Tenants whose users are another's, and whether that one has rights here."""
        self.overtaken: dict[str, bool] = {}
        """Those that another takes once they have their topology."""
        self.ended: list[str] = []
        self.waiting: Counter[str] = Counter()
        self.limits: dict[str, dict[str, object]] = {}
        """What holds tenants to limits, as `limits_of` says it."""
        self.kept = frozenset(OF_THE_BROKER)

    def check_owner(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        if kind is UserKind.PRODUCER and tenant_id in self.taken:
            raise NotOursError(f"user of {tenant_id} is another's", here=self.taken[tenant_id])

    def claim(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        self._faults.reach("claim")
        if kind is UserKind.CONSUMER:
            self.consumers.setdefault(tenant_id, PasswordHash(value=""))
            return
        self.check_owner(tenant_id, known, kind)
        self.users.setdefault(tenant_id, PasswordHash(value=""))

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        self.ended.append(
            names.username(tenant_id, kind) if kind is UserKind.CONSUMER else tenant_id
        )

    def ensure_topology(self, topology: TenantTopology) -> None:
        self._faults.reach("ensure_topology")
        self.topologies[topology.tenant_id] = topology
        self.taken |= self.overtaken

    def remove_topology(self, tenant_id: str) -> int:
        self._faults.reach("remove_topology")
        self.topologies.pop(tenant_id, None)
        self.limits.pop(tenant_id, None)
        return self.waiting.pop(tenant_id, 0)

    def remove_group(self, tenant_id: str) -> None:
        self._faults.reach("remove_group")
        if tenant_id in self.topologies:
            there = self.topologies[tenant_id]
            self.topologies[tenant_id] = replace(there, consumer_access=False)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        if kind is UserKind.CONSUMER:
            self._faults.reach("ensure_consumer")
            self.consumers[tenant_id] = password
            return
        self._faults.reach("ensure_user")
        self.check_owner(tenant_id)
        self.users[tenant_id] = password

    def remove_user(
        self,
        tenant_id: str,
        known: PasswordHash | None = None,
        kind: UserKind = UserKind.PRODUCER,
    ) -> None:
        if kind is UserKind.CONSUMER:
            self._faults.reach("remove_consumer")
            self.consumers.pop(tenant_id, None)
            return
        self._faults.reach("remove_user")
        if tenant_id not in self.taken:
            self.users.pop(tenant_id, None)

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        number = len(self._faults.steps)
        credentials = Credentials(
            username=names.username(tenant_id, kind),
            password=f"secret-{number}",
            amqp_url="amqp://",
        )
        return credentials, PasswordHash(value=f"hash-{number}")

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        return {tenant_id: QueueCounts(ready=count) for tenant_id, count in self.waiting.items()}

    @property
    def kept_limits(self) -> KeptLimits:
        return KeptLimits(broker="the fake", names=self.kept)

    def limits_of(self, topology: TenantTopology, limits: Limits) -> dict[str, object]:
        found: dict[str, object] = {}
        if limits.has_backlog:
            found["policy"] = limits.backlog_messages, len(topology.queues())
        if limits.connections is not None:
            found["user"] = limits.connections
            if topology.consumer_access:
                found["consumer"] = limits.connections
        return found

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        self._faults.reach("ensure_limits")
        wanted = self.limits_of(topology, limits)
        self.limits.pop(topology.tenant_id, None)
        if wanted:
            self.limits[topology.tenant_id] = wanted

    def survey(self) -> Survey:
        self._faults.reach("survey")
        plans = [layout.plan(one, "quorum") for one in self.topologies.values()]
        return Survey(
            exchanges={name: "direct" for plan in plans for name in plan.exchanges},
            queues={one.name: one.arguments for plan in plans for one in plan.queues},
            bindings=frozenset(
                (one.exchange, one.queue, one.routing_key)
                for plan in plans
                for one in plan.bindings
            ),
            users={
                names.username(tenant_id, kind): User(
                    password_hash=password.value, permissions=layout.permissions(tenant_id, kind)
                )
                for kind, users in (
                    (UserKind.PRODUCER, self.users),
                    (UserKind.CONSUMER, self.consumers),
                )
                for tenant_id, password in users.items()
            },
            consumed=frozenset(one.name for plan in plans for one in plan.queues),
            copies=True,
            limits={tenant_id: dict(found) for tenant_id, found in self.limits.items()},
        )

    def check(self) -> None:
        pass


class FakePasswords:
    """Hashes in dictionaries."""

    def __init__(self) -> None:
        self.hashes: dict[str, PasswordHash] = {}
        self.pending: dict[str, PasswordHash] = {}
        self.consumers: dict[str, PasswordHash] = {}
        self.pending_consumers: dict[str, PasswordHash] = {}

    def propose(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        self._of(kind)[1][tenant_id] = password

    def confirm(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        hashes, pending = self._of(kind)
        if (password := pending.pop(tenant_id, None)) is not None:
            hashes[tenant_id] = password

    def apply(self, recorded: Sequence[RecordedEvent]) -> None:
        """Confirm and forget in step with the journal, as the database does."""
        for one in recorded:
            match password_change(one):
                case PasswordChange(verb="confirm", kind=kind):
                    self.confirm(one.event.tenant_id, kind)
                case PasswordChange(kind=kind):
                    self._forget(one.event.tenant_id, kind)

    def load(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> PasswordHash | None:
        return self._of(kind)[0].get(tenant_id)

    def remove(self, tenant_id: str) -> None:
        for kind in UserKind:
            self._forget(tenant_id, kind)

    def all(self, kind: UserKind = UserKind.PRODUCER) -> Mapping[str, PasswordHash]:
        return dict(self._of(kind)[0])

    def _forget(self, tenant_id: str, kind: UserKind) -> None:
        for hashes in self._of(kind):
            hashes.pop(tenant_id, None)

    def _of(self, kind: UserKind) -> tuple[dict[str, PasswordHash], dict[str, PasswordHash]]:
        if kind is UserKind.CONSUMER:
            return self.consumers, self.pending_consumers
        return self.hashes, self.pending


class NoSqlAccess:
    """For a store that is no SQL database."""

    def granting(self, tenant_id: str) -> AbstractContextManager[SqlCredentials]:
        raise NotImplementedError(f"tenant {tenant_id!r} can't read this store with SQL")

    def revoke(self, tenant_id: str) -> bool:
        return False


def message(identity: str | None, body: bytes = b"{}") -> Incoming:
    return Incoming(identity, "default", 0, body, "application/json", None, None)


def outage() -> BrokerUnavailableError:
    return BrokerUnavailableError("the broker is away")
