"""The whole tree of actors over ports in memory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenantry.actors.clock import ThreadClock
from tenantry.actors.control import ActorControl
from tenantry.actors.messages import Orphan
from tenantry.actors.ports import ActorPorts, Observer
from tenantry.actors.provisioner import Provisioner
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import ActorThread
from tenantry.actors.tree import begin, drain_and_stop, start_actors
from tenantry.actors.watch import FROZEN, LONGEST_ROUND, Watch
from tenantry.control.port import Outcome
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.domain import names
from tenantry.domain.commands import Command, CreateTenant
from tenantry.journal.port import Metadata
from tenantry.settings.model import Consumer as ConsumerSettings
from tenantry.turns.turns import Weights
from tests.fakes.consuming import FakeBroker, FakeSubscription
from tests.fakes.dead_letters import InMemoryDeadLetterIndex
from tests.fakes.faults import Faults
from tests.fakes.message_store import FakeStore
from tests.fakes.messages import incoming
from tests.fakes.provisioning import FakeAdministration, FakePasswords, NoSqlAccess
from tests.fakes.stores import InMemoryEventStore, InMemoryTenantDirectory, InMemoryTenantProjection
from tests.waiting import DEADLINE, eventually


class Tree:
    """A running supervisor and everything under it. What is outside survives `restart`."""

    def __init__(self, observer: Observer | None = None, *, look_every: float = 60.0) -> None:
        self.look_every = look_every
        self.observer = observer or Observer()
        self.faults = Faults()
        self.projection = InMemoryTenantProjection()
        self.passwords = FakePasswords()
        self.journal = InMemoryEventStore(projections=[self.projection, self.passwords])
        self.directory = InMemoryTenantDirectory(self.journal, self.projection)
        self.store = FakeStore(self.faults)
        self.dead_letters = InMemoryDeadLetterIndex()
        self.dead_letter_events = DeadLetterEvents(self.journal, lambda _: 1, at_once=2)
        self.broker = FakeBroker()
        self.administration = FakeAdministration(self.faults)
        self.crashes: list[str] = []
        self.limits = ConsumerSettings(prefetch=100, batch_size=5, linger_ms=10)
        self.now = time.monotonic()
        self._passed = 0.0
        self.start()

    def start(self) -> None:
        self.clock = ThreadClock()
        self._clock_thread = threading.Thread(target=self.clock.run, daemon=True)
        self._clock_thread.start()
        self.runtime = RuntimeState()
        self.watch = Watch(self.runtime, now=lambda: self.now)
        self.weights = Weights()
        self.supervisor = start_actors(
            ActorPorts(
                journal=self.journal,
                directory=self.directory,
                messages=self.store,
                dead_letters=self.dead_letters,
                dead_letter_events=self.dead_letter_events,
                consuming=self.broker,
                provisioner=Provisioner(
                    administration=self.administration,
                    messages=self.store,
                    passwords=self.passwords,
                    sql_access=NoSqlAccess(),
                ),
                clock=self.clock,
                limits=lambda: self.limits,
                observer=self.observer,
                reconcile_every=self.look_every,
                weights=self.weights,
            ),
            self.runtime,
            on_crash=self.crashes.append,
        )
        self.control = ActorControl(
            self.supervisor,
            self.runtime,
            self.watch,
            drain_seconds=DEADLINE,
            on_stop=lambda: None,
        )
        begin(self.supervisor)
        eventually(lambda: self.runtime.state.value == "running")

    def stop(self, seconds: float = DEADLINE) -> tuple[Orphan, ...]:
        self.store.gate.set()
        orphans = drain_and_stop(self.supervisor, seconds=seconds)
        self.clock.stop()
        self._clock_thread.join(DEADLINE)
        return orphans

    def pass_time(self, seconds: float) -> None:
        """Let the watch, and nobody else, see so many seconds pass, or some more, and look.

        Its time goes on here alone, by as much as it looks at all actors once: however long this
        machine holds a test up, the watch does not take itself for frozen.
        """
        # What beats goes by the real clock.
        behind = max(0.0, time.monotonic() + self._passed - self.now)
        self._passed += seconds
        looks = math.ceil((behind + seconds) / (FROZEN - 1))
        for _ in range(looks):
            self.now += max(LONGEST_ROUND, (behind + seconds) / looks)
            self.watch.look()

    def busy(self) -> set[str]:
        """Name the actors that are at work."""
        return {
            thread.heartbeat.name
            for thread in running_actors()
            if thread.heartbeat.overdue(math.inf, patience=0) is not None
        }

    def execute(self, command: Command, timeout: float = DEADLINE) -> Outcome:
        return self.control.execute(command, metadata=Metadata(actor="test"), timeout=timeout)

    def create(self, tenant_id: str, workers: int = 3, topics: tuple[str, ...] = ()) -> Outcome:
        return self.execute(
            CreateTenant(
                tenant_id=tenant_id, name=tenant_id, workers=workers, topics=topics, partitions=2
            )
        )

    def subscription(self, tenant_id: str) -> FakeSubscription:
        return self.broker.subscriptions[tenant_id]

    def deliver(self, tenant_id: str, *ids: str, body: bytes = b"{}") -> None:
        self.subscription(tenant_id).deliver([incoming(one, body) for one in ids])

    def stored(self, tenant_id: str) -> set[str]:
        return set(self.store.rows.get(tenant_id, {}))

    def events(self, tenant_id: str) -> list[str]:
        stream = names.journal_stream(tenant_id)
        return [type(one.event).__name__ for one in self.journal.read_stream(stream)]


def running_actors() -> list[ActorThread]:
    """Give the threads of all actors of this process."""
    return [one for one in threading.enumerate() if isinstance(one, ActorThread)]


@contextmanager
def running_tree(
    prepare: Callable[[Tree], None] | None = None,
    observer: Observer | None = None,
    *,
    look_every: float = 60.0,
) -> Iterator[Tree]:
    """Run a tree; at the end no actor of it is left."""
    tree = Tree(observer, look_every=look_every)
    try:
        if prepare is not None:
            prepare(tree)
        yield tree
    finally:
        tree.faults.clear()
        for gate in tree.store.gates.values():
            gate.set()
        tree.stop()
        eventually(lambda: not running_actors(), what="all actors stopped")
