"""A tenant's life as a state machine: whatever operators do, nothing is lost and numbers hold."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tenantry.domain.commands import PauseTenant, RequestDeletion, ResizeWorkers, ResumeTenant
from tenantry.domain.tenant import Lifecycle
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tests.depth import examples
from tests.fakes.actors import Tree, running_actors
from tests.fakes.messages import incoming
from tests.waiting import eventually

TENANT = "t"


class TenantLife(RuleBasedStateMachine):
    """Operators, producers and faults act on one tenant; the model only counts."""

    @initialize(workers=st.integers(1, 8))
    def begin(self, workers: int) -> None:
        self.tree = Tree()
        self.sent = 0
        self.crashes = 0
        self.expected: set[str] = set()
        self.tree.create(TENANT, workers=workers)
        self.workers = workers
        self.lifecycle = Lifecycle.ACTIVE

    @rule(count=st.integers(1, 40))
    def publish(self, count: int) -> None:
        ids = [f"m{self.sent + number}" for number in range(count)]
        self.sent += count
        self.expected.update(ids)
        self.tree.subscription(TENANT).deliver([incoming(one) for one in ids])

    @rule(count=st.integers(1, 10), body=st.sampled_from([b"fails1", b"fails3", b"left"]))
    def publish_what_fails_at_first(self, count: int, body: bytes) -> None:
        ids = [f"m{self.sent + number}" for number in range(count)]
        self.sent += count
        self.expected.update(ids)
        self.tree.subscription(TENANT).deliver([incoming(one, body) for one in ids])

    @rule(workers=st.integers(1, 16))
    def resize(self, workers: int) -> None:
        outcome = self.tree.execute(ResizeWorkers(tenant_id=TENANT, workers=workers))
        self.workers = workers
        assert outcome.tenant.workers == workers
        if self.lifecycle is Lifecycle.ACTIVE:
            assert outcome.runtime is not None
            assert outcome.runtime.workers_current == workers

    @rule()
    def pause(self) -> None:
        self.tree.execute(PauseTenant(tenant_id=TENANT))
        self.lifecycle = Lifecycle.PAUSED
        subscription = self.tree.subscription(TENANT)
        assert not subscription.consuming
        # What is held for another attempt goes back when the channel is closed, soon after.
        eventually(lambda: not subscription.unsettled)

    @rule()
    def resume(self) -> None:
        self.tree.execute(ResumeTenant(tenant_id=TENANT))
        self.lifecycle = Lifecycle.ACTIVE
        assert self.tree.subscription(TENANT).consuming

    @rule(error=st.sampled_from([MessageStoreError("a bug"), StoreUnavailableError("away")]))
    def fail_once(self, error: Exception) -> None:
        """The next batch fails; few enough crashes in a life that no restart limit is reached."""
        if isinstance(error, MessageStoreError) and not isinstance(error, StoreUnavailableError):
            if self.crashes == 4:
                return
            self.crashes += 1
        self.tree.faults.plan(f"store {TENANT}", error)

    @precondition(lambda self: self.lifecycle is Lifecycle.ACTIVE)
    @rule()
    def lose_the_channel(self) -> None:
        subscription = self.tree.subscription(TENANT)
        subscription.lose()
        subscription.connect()

    @rule()
    def restart(self) -> None:
        assert self.tree.stop() == ()
        self.tree.start()
        eventually(lambda: not self.tree.runtime.not_ready())
        runtime = self.tree.control.runtime(TENANT)
        assert runtime is not None
        if self.lifecycle is Lifecycle.ACTIVE:
            assert runtime.workers_current == self.workers

    @rule(workers=st.integers(1, 4))
    def delete_and_create(self, workers: int) -> None:
        self.tree.execute(RequestDeletion(tenant_id=TENANT))
        subscription = self.tree.subscription(TENANT)
        eventually(lambda: not subscription.unsettled)
        subscription.requeued.clear()
        self.expected.clear()
        self.tree.create(TENANT, workers=workers)
        self.workers = workers
        self.lifecycle = Lifecycle.ACTIVE

    @invariant()
    def only_what_was_sent_is_stored(self) -> None:
        assert self.tree.stored(TENANT) <= self.expected

    @invariant()
    def nothing_is_acknowledged_that_is_not_stored(self) -> None:
        subscription = self.tree.subscription(TENANT)
        waiting = {one.id for one in (*subscription.unsettled.values(), *subscription.requeued)}
        assert self.expected - waiting <= self.tree.stored(TENANT)

    def teardown(self) -> None:
        if not hasattr(self, "tree"):
            return
        try:
            self.tree.faults.clear()
            self.tree.execute(ResumeTenant(tenant_id=TENANT))
            eventually(lambda: self.tree.stored(TENANT) == self.expected)
            eventually(lambda: not self.tree.subscription(TENANT).unsettled)
        finally:
            self.tree.stop()
            eventually(lambda: not running_actors())


TenantLife.TestCase.settings = settings(
    max_examples=examples(15, 100),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestTenantLife = TenantLife.TestCase
