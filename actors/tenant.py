"""The tenant: takes its commands, records their events, and carries them out.

It owns one consumer and its workers. Everything outside is derived from the tenant's state, so that
after a fault the actor only has to begin again.
"""

from __future__ import annotations

from functools import partial
from typing import Final, assert_never

import structlog

from tenantry.actors.backoff import Retries
from tenantry.actors.children import Children
from tenantry.actors.control import Awaited, PendingReplies, claim
from tenantry.actors.drift_repair import DriftRepair
from tenantry.actors.messages import (
    Begin,
    ChildFailed,
    ConsumerReady,
    Drain,
    Drained,
    Drifted,
    Execute,
    Intact,
    Leave,
    Limit,
    Parked,
    QueuesSilent,
    Ref,
    Reminder,
    Resize,
    Resized,
    RestartChild,
    TenantGone,
    TopologyMissing,
    WorkerReleased,
    WorkerWanted,
)
from tenantry.actors.ports import ActorPorts
from tenantry.actors.provisioning_steps import ProvisioningSteps
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.actors.supervision import NoThreadError, SupervisedActor, refuse, tell
from tenantry.actors.tenant_aggregate import TenantAggregate
from tenantry.broker.port import Credentials
from tenantry.control.port import CommandFailedError, ControlUnavailableError, ElsewhereError
from tenantry.domain.commands import (
    AddTopics,
    ChangeLimits,
    CreateTenant,
    DomainError,
    GrantConsumerAccess,
    GrantSqlAccess,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeConsumerAccess,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.unavailable import UnavailableError

log = structlog.get_logger("actors.tenant")

WAIT_FOR_THREADS: Final = 5.0
"""Seconds between attempts to start a worker when no more threads can be started."""


class Tenant(SupervisedActor):
    """One tenant. Commands are handled one at a time, in the order they come.

    Its parts: the `TenantAggregate` (its events and state), the `ProvisioningSteps` by which its
    outside objects follow the state, the `DriftRepair`, the `Children` that work, and the
    `PendingReplies` to commands.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        parent: Ref,
        ports: ActorPorts,
        runtime: TenantRuntimeState,
        fresh: bool = False,
    ) -> None:
        """With `fresh` the actor is for a tenant about to be created, or one that is deleted."""
        super().__init__(name="tenant", parent=parent, tenant_id=tenant_id)
        self._id = tenant_id
        self._runtime = runtime
        self._clock = ports.clock
        self._tracer = ports.tracer
        self._fresh = fresh
        self._gone = False
        self._draining = self._leaving = False
        self._park: str | None = None
        self._retries = Retries(actor=self.actor_ref, clock=ports.clock)
        # Its parts don't refer to the actor, so that an ended actor is freed at once.
        beat = self.heartbeat.go_on
        self._aggregate = TenantAggregate(
            tenant_id=tenant_id, ports=ports, runtime=runtime, beat=beat
        )
        self._steps = ProvisioningSteps(
            tenant_id=tenant_id, aggregate=self._aggregate, ports=ports, beat=beat
        )
        self._children = Children(
            tenant_id=tenant_id, parent=self.actor_ref, runtime=runtime, ports=ports
        )
        self._drift_repair = DriftRepair(
            tenant_id=tenant_id,
            aggregate=self._aggregate,
            steps=self._steps,
            ports=ports,
            resubscribe=self._children.resubscribe,
        )
        self._replies = PendingReplies(aggregate=self._aggregate, runtime=runtime)
        self.heartbeat.on_fence(self._replies.refuse_all)

    def handle(self, message: object) -> None:
        """Handle a command, or a message from a child, the supervisor or the clock."""
        self._handle(message)
        if self._leaving and not self._draining and not self._replies.awaited:
            self._drain()

    def _handle(self, message: object) -> None:
        match message:
            case Execute():
                self._execute(message)
            case WorkerWanted():
                self._start_worker(message)
            case WorkerReleased(worker=worker):
                self._children.stop_worker(worker)
            case ConsumerReady():
                log.info("tenant.consuming")
                self._steps.unused = False
                self._replies.happened(Awaited.CONSUMING)
            case Resized():
                self._replies.happened(Awaited.RESIZED)
            case TopologyMissing(reason=reason):
                self._drift_repair.missing(reason)
                self._reconcile()
            case QueuesSilent(queues=queues):
                if not self._hands_off:
                    self._drift_repair.silent(queues)
            case Drifted():
                self._drifted(message)
            case Drained():
                self._consumer_drained()
            case ChildFailed(child=child, error=error, stuck=stuck):
                self._child_failed(child, error, stuck=stuck)
            case RestartChild():
                self._reconcile()
            case Reminder.TRY_AGAIN:
                self._retries.due()
                self._runtime.stands_still = None
                self._reconcile()
            case Drain():
                self._drain()
            case Leave():
                self._leaving = True
            case Begin(intact=Intact() as intact):
                self._go_on_from(intact)
            case Begin(in_order=True):
                self._go_on_as_left()
            case Begin(park=park):
                self._park = park
                self._reconcile()
            case _:
                raise TypeError(f"a tenant can't handle {type(message).__name__}")

    def stopped(self) -> None:
        """Stop the children and answer the commands that still wait."""
        self._children.stop()
        self._runtime.ref = None
        self._replies.refuse_all()

    def _start_worker(self, message: WorkerWanted) -> None:
        try:
            self._children.start_worker()
        except NoThreadError as error:
            # The consumer counts on this worker: the request stands until it can be met.
            log.warning("worker.not_started", error=str(error))
            self._clock.tell_later(WAIT_FOR_THREADS, self.actor_ref, message)

    # Commands.

    def _execute(self, message: Execute) -> None:
        structlog.contextvars.bind_contextvars(correlation_id=message.metadata.correlation_id)
        self._replies.executing = message
        try:
            if self._gone:
                # The supervisor is about to drop this actor; it routes the command anew.
                self.tell_parent(message)
            elif self._leaving:
                refuse(
                    message, ElsewhereError(f"tenant {self._id!r} is on its way to another node")
                )
            elif self._draining:
                refuse(message, ControlUnavailableError("the daemon is draining"))
            elif not self._aggregate.loaded:
                refuse(message, ControlUnavailableError("the tenant's events can't be read yet"))
                if self._fresh:
                    self._leave()
            elif self._children.after_drain:
                self._replies.postpone(message)
            else:
                with self._tracer.executing(
                    type(message.command).__name__, self._id, message.asked
                ):
                    self._carry_out(message)
        except (DomainError, CommandFailedError) as error:
            self._refused(message, error)
        except UnavailableError as error:
            self._refused(message, ControlUnavailableError(str(error)))
        except Exception as error:
            refuse(message, CommandFailedError(f"tenant {self._id!r}: {error}"))
            raise
        finally:
            self._replies.executing = None
            self._steps.changed_at = self._clock.now()
            structlog.contextvars.unbind_contextvars("correlation_id")

    def _carry_out(self, message: Execute) -> None:
        command, metadata = message.command, message.metadata
        replies, steps = self._replies, self._steps
        match command:
            case CreateTenant():
                self._consume(message, steps.create(command, metadata), made=True)
            case ResizeWorkers():
                self._resize(message, self._aggregate.execute(command, metadata))
            case ChangeLimits():
                state = steps.change_limits(command, metadata)
                if self._children.consumer is not None:
                    tell(self._children.consumer, Limit(limits=state.limits))
                if self._children.outdated(state):
                    # A consumer's prefetch is fixed: it drains, and a new consumer replaces it.
                    self._children.drain(partial(self._consume, message, None))
                else:
                    self._resize(message, state)
            case PauseTenant():
                self._aggregate.execute(command, metadata)
                replies.happened(Awaited.CONSUMING)  # it won't happen any more
                self._children.drain(partial(replies.answer, message))
            case ResumeTenant():
                self._aggregate.execute(command, metadata)
                self._runtime.restarts = 0
                self._consume(message, None)
            case RotateCredentials():
                credentials = steps.rotate_credentials(
                    command, metadata, claim=partial(claim, message)
                )
                replies.answer(message, credentials)
            case GrantSqlAccess() | RevokeSqlAccess():
                granted = steps.change_sql_access(command, metadata, claim=partial(claim, message))
                replies.answer(message, sql_credentials=granted)
            case GrantConsumerAccess():
                credentials = steps.grant_consumer_access(
                    command, metadata, claim=partial(claim, message)
                )
                replies.answer(message, credentials)
            case RevokeConsumerAccess():
                steps.revoke_consumer_access(command, metadata)
                replies.answer(message)
            case AddTopics():
                if steps.add_topics(command, metadata):
                    # A consumer's queues are fixed: it drains, and a new consumer reads all queues.
                    self._children.drain(partial(self._consume, message, None))
                else:
                    replies.answer(message)
            case RequestDeletion():
                self._aggregate.execute(command, metadata)
                replies.happened(Awaited.CONSUMING)
                replies.answer_when(Awaited.DELETED, message)
                self._children.drain(self._delete)
            case _:
                assert_never(command)

    def _resize(self, message: Execute, state: TenantState) -> None:
        """Pass the number of workers to the consumer, and answer when it is in force."""
        consumer = self._children.consumer
        if consumer is None:
            self._replies.answer(message)
        else:
            self._replies.answer_when(Awaited.RESIZED, message)
            tell(consumer, Resize(workers=state.workers))

    def _refused(self, message: Execute, error: Exception) -> None:
        """Refuse a command; if it left work unfinished outside, retry that soon."""
        refuse(message, error)
        self._leave_if_unknown()
        if self._steps.unfinished:
            self._retries.after(error)

    def _consume(
        self, message: Execute, credentials: Credentials | None, *, made: bool = False
    ) -> None:
        """Make an active tenant consume, and answer when it does.

        A tenant that was just `made` has all its objects.
        """
        active = self._aggregate.known().lifecycle is Lifecycle.ACTIVE
        if not active or self._runtime.consuming:
            self._replies.answer(message, credentials)
            return
        self._replies.answer_when(Awaited.CONSUMING, message, credentials)
        self._reconcile(made=made)

    def _delete(self) -> None:
        """Remove the tenant's objects; during an outage, as soon as that is over."""
        try:
            self._bring_about()
        except UnavailableError as error:
            self._retries.after(error)

    # Bringing about what the state says.

    def _go_on_from(self, intact: Intact) -> None:
        """Consume, if the state says so: there is nothing to load and nothing to create.

        So a start with many tenants takes one look at all of them, not a dozen calls for each.
        """
        state = intact.state
        self._children.show_totals(intact.totals)
        self._aggregate.adopt(state)
        if state.lifecycle is Lifecycle.ACTIVE:
            self._children.consume(state, totals=intact.totals)

    def _go_on_as_left(self) -> None:
        """Load, and consume if the state says so: another node has left everything in order."""
        try:
            self._aggregate.load(self._children.show_totals)
        except UnavailableError as error:
            self._retries.after(error)
            return
        state = self._aggregate.state
        if state is not None and state.lifecycle is Lifecycle.ACTIVE:
            self._children.consume(state)
        else:
            self._reconcile()

    @property
    def _hands_off(self) -> bool:
        """Whether to start and repair nothing: the actor ends, or the consumer drains."""
        return self._draining or self._gone or bool(self._children.after_drain)

    def _reconcile(self, *, made: bool = False) -> None:
        """Bring about what the state says. An outage is waited out; other errors fail the actor.

        Objects that were just `made` are not created again.
        """
        if self._hands_off:
            return
        try:
            if not self._aggregate.loaded:
                self._aggregate.load(self._children.show_totals)
            if self._aggregate.exists and self._goes_on():
                self._bring_about(made=made)
        except UnavailableError as error:
            self._retries.after(error)
            return
        self._retries.succeeded()
        self._runtime.store_down = False
        self._drift_repair.made_again()

    def _goes_on(self) -> bool:
        """Park the tenant, if that is asked for; return whether to go on with its state."""
        reason = self._park
        if reason is None:
            return True
        parked = self._steps.park(reason)
        self._park = None
        if not parked:
            self._retries.much_later(reason)
            return False
        self._runtime.stands_still = None
        self._replies.happened(Awaited.CONSUMING)
        self.tell_parent(Parked(tenant_id=self._id))
        return True

    def _bring_about(self, *, made: bool = False) -> None:
        state = self._aggregate.known() if made else self._steps.bring_about()
        if state.lifecycle is Lifecycle.ACTIVE:
            if self._children.outdated(state):
                # A consumer's queues are fixed: it drains, and a new consumer reads all queues.
                self._children.drain(self._reconcile)
            else:
                self._children.consume(state)
        elif not state.exists:
            self._replies.happened(Awaited.DELETED)
            self._leave()

    def _drifted(self, message: Drifted) -> None:
        if self._hands_off:
            return
        self._drift_repair.repair(message.drift, seen_at=message.seen_at)
        if message.leftover:
            self._leave_if_unknown()

    def _leave_if_unknown(self) -> None:
        """End the actor if there is no tenant, as after a refused creation."""
        if not self._aggregate.exists:
            self._leave()

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self.tell_parent(TenantGone(tenant_id=self._id, ref=self.actor_ref))

    # Children that fail, and draining.

    def _child_failed(self, child: Ref, error: str, *, stuck: bool) -> None:
        delay = self._children.failed(child, error, stuck=stuck)
        if delay is None:
            return
        # The next consumer has the number of workers that the state asks for.
        self._replies.happened(Awaited.RESIZED)
        if self._children.after_drain:
            self._consumer_drained()
        else:
            self._clock.tell_later(delay, self.actor_ref, RestartChild(name="consumer"))

    def _drain(self) -> None:
        self._draining = True
        draining = ControlUnavailableError("the daemon is draining")
        self._replies.cannot_happen(Awaited.CONSUMING, draining)
        self._children.drain(lambda: self.tell_parent(Drained(name=self._id)))

    def _consumer_drained(self) -> None:
        self._children.drained()
        while not self._children.after_drain and (message := self._replies.next_postponed()):
            self._execute(message)
