"""The tenant: decides its commands, records their events, and makes them so.

It owns one consumer and its workers. Whatever it does outside is brought about from its state, so
that after a fault it only has to begin again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from actors.board import TenantBoard
from actors.children import Children
from actors.clock import Clock, tell
from actors.consumer import ConsumerLimits, ConsumerPorts
from actors.mending import Mender
from actors.messages import (
    Begin,
    ChildFailed,
    ChildStuck,
    ConsumerReady,
    Drain,
    Drained,
    Drifted,
    Execute,
    Parked,
    QueuesSilent,
    Ref,
    Resize,
    Resized,
    RestartChild,
    TenantGone,
    TopologyMissing,
    TryAgain,
    WorkerReleased,
    WorkerWanted,
)
from actors.observer import NoObserver, Observer
from actors.provisioning import Provisioner, topology_of
from actors.restarts import HOPELESS, backoff
from actors.supervision import SupervisedActor, answer, refuse
from actors.worker import WorkerPorts
from tenantry.api.port import CommandFailedError, Outcome, UnavailableError
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Consuming, Credentials
from tenantry.broker.survey import Drift, DriftKind
from tenantry.domain import names
from tenantry.domain.commands import (
    AbandonProvisioning,
    AddTopics,
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    GrantSqlAccess,
    ParkTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.domain.errors import DomainError
from tenantry.domain.tenant import Lifecycle, TenantState, decide, fold
from tenantry.journal.port import (
    EventStore,
    JournalError,
    JournalUnavailableError,
    Metadata,
    VersionConflictError,
)
from tenantry.journal.tenants import load_tenant, snapshot_due, snapshot_of
from tenantry.messages.dead_letters import DeadLetterIndex
from tenantry.messages.port import MessageStore, MessageStoreError, StoreUnavailableError
from tenantry.messages.sql_access import SqlCredentials

log = structlog.get_logger("actors.tenant")

Unavailable: Final = (JournalUnavailableError, StoreUnavailableError, BrokerUnavailableError)
"""An outage: the same step may succeed later. Waited out, not failed over."""

CONFLICTS: Final = 3
"""How often a command is decided anew because somebody else appended first."""

LONGEST_STASH: Final = 100

PROVISIONING_SECONDS: Final = 180.0
"""How long a tenant may be silent while its objects are made or removed: several calls, each with
a timeout of its own."""

QUEUE_SECONDS: Final = 0.2
"""How much longer for each of its queues."""

LONGEST_WAIT: Final = 2.0
"""Seconds between attempts during an outage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPorts:
    """What a tenant and its children stand on."""

    journal: EventStore
    messages: MessageStore
    dead_letters: DeadLetterIndex
    broker: Consuming
    provisioner: Provisioner
    clock: Clock
    limits: ConsumerLimits
    observer: Observer = field(default_factory=NoObserver)
    store_patience: float | None = None


class Tenant(SupervisedActor):
    """One tenant's life. Commands are handled one at a time, in the order they come."""

    def __init__(
        self,
        *,
        tenant_id: str,
        parent: Ref,
        ports: TenantPorts,
        board: TenantBoard,
        fresh: bool = False,
    ) -> None:
        """With `fresh` the actor is made for a tenant that is only about to be created."""
        super().__init__(name="tenant", parent=parent, tenant_id=tenant_id)
        self._id = tenant_id
        self._ports = ports
        self._board = board
        self._state: TenantState | None = None
        self._loaded = False
        self._fresh = fresh
        self._gone = False
        self._draining = False
        self._failures = 0
        self._retrying = False
        self._park: str | None = None
        self._abandoned: str | None = None
        self._changed_at = 0.0
        self._unused = False
        """Whether nobody can have published yet: nobody was shown the tenant's password."""
        self._queue_gone: str | None = None
        self._mender = Mender(
            tenant_id=tenant_id,
            provisioner=ports.provisioner,
            clock=ports.clock,
            observer=ports.observer,
        )
        self._children = Children(
            tenant_id=tenant_id,
            parent=self.actor_ref,
            board=board,
            clock=ports.clock,
            observer=ports.observer,
            limits=ports.limits,
            consumer_ports=ConsumerPorts(broker=ports.broker, clock=ports.clock),
            worker_ports=WorkerPorts(
                messages=ports.messages,
                dead_letters=ports.dead_letters,
                journal=ports.journal,
                clock=ports.clock,
                observer=ports.observer,
                patience=ports.store_patience,
            ),
        )
        self._ready_waiters: list[tuple[Execute, Credentials | None]] = []
        self._resize_waiters: list[Execute] = []
        self._deletion_waiters: list[Execute] = []
        self._after_drain: list[Callable[[], None]] = []
        self._stash: deque[Execute] = deque()
        self._carried: Execute | None = None
        self.pulse.on_fence(self._refuse_all)

    def handle(self, message: object) -> None:
        """Handle a command, a word of a child, the supervisor or the clock."""
        match message:
            case Execute():
                self._execute(message)
            case WorkerWanted():
                self._children.start_worker()
            case WorkerReleased(worker=worker):
                self._children.stop_worker(worker)
            case ConsumerReady():
                self._ready()
            case Resized():
                waiters, self._resize_waiters = self._resize_waiters, []
                for waiter in waiters:
                    self._answer(waiter)
            case TopologyMissing(reason=reason):
                log.warning("tenant.topology_missing", reason=reason)
                self._queue_gone = reason
                self._reconcile()
            case QueuesSilent(queues=queues):
                self._queues_silent(queues)
            case Drifted():
                self._drifted(message)
            case Drained():
                self._consumer_drained()
            case ChildFailed(child=child, error=error):
                self._child_failed(child, error)
            case ChildStuck(child=child, error=error):
                self._child_failed(child, error, stuck=True)
            case RestartChild():
                self._reconcile()
            case TryAgain():
                self._retrying = False
                self._board.stands_still = None
                self._reconcile()
            case Drain():
                self._drain()
            case Begin(park=park):
                self._park = park
                self._reconcile()
            case _:
                raise TypeError(f"a tenant can't handle {type(message).__name__}")

    def crashed(self) -> None:
        """Stop the children; the supervisor starts everything anew."""
        self.stopped()

    def stopped(self) -> None:
        """Stop the children and answer whoever still waits."""
        self._children.stop()
        self._board.ref = None
        self._refuse_all()

    def _refuse_all(self) -> None:
        """Refuse what is not answered; of a tenant that was replaced, from another thread."""
        waiting = [waiter for waiter, _ in self._ready_waiters]
        carried = [] if self._carried is None else [self._carried]
        for message in (
            *carried, *waiting, *self._resize_waiters, *self._deletion_waiters, *self._stash
        ):  # fmt: skip
            refuse(message, UnavailableError("the tenant's actor has stopped; try again"))

    # Commands.

    def _execute(self, message: Execute) -> None:
        structlog.contextvars.bind_contextvars(correlation_id=message.metadata.correlation_id)
        self._carried = message
        try:
            if self._gone:
                # The supervisor is about to let this actor go; it routes the command anew.
                self.tell_parent(message)
            elif self._draining:
                refuse(message, UnavailableError("the daemon is draining"))
            elif not self._loaded:
                refuse(message, UnavailableError("the tenant's events can't be read yet"))
                if self._fresh:
                    self._leave()
            elif self._after_drain:
                self._put_aside(message)
            else:
                self._carry_out(message)
        except DomainError as error:
            refuse(message, error)
            self._gone_if_unknown()
        except Unavailable as error:
            refuse(message, UnavailableError(str(error)))
            self._gone_if_unknown()
        except Exception as error:
            refuse(message, CommandFailedError(f"tenant {self._id!r}: {error}"))
            raise
        finally:
            self._carried = None
            self._changed_at = self._ports.clock.now()
            structlog.contextvars.unbind_contextvars("correlation_id")

    def _put_aside(self, message: Execute) -> None:
        """Keep a command until the consumer has drained."""
        if len(self._stash) >= LONGEST_STASH:
            refuse(message, UnavailableError("too many commands wait for this tenant"))
        else:
            self._stash.append(message)

    def _carry_out(self, message: Execute) -> None:
        command = message.command
        match command:
            case CreateTenant():
                self._create(message, command)
            case ResizeWorkers(workers=workers):
                self._record(command, message.metadata)
                if self._children.consumer is None:
                    self._answer(message)
                else:
                    self._resize_waiters.append(message)
                    tell(self._children.consumer, Resize(workers=workers))
            case PauseTenant():
                self._record(command, message.metadata)
                self._drain_consumer(partial(self._answer, message))
            case ResumeTenant():
                self._record(command, message.metadata)
                self._board.restarts = 0
                self._consume(message, None)
            case RotateCredentials():
                self._unused = False
                self._record(command, message.metadata)
                self._begin_provisioning()
                credentials = self._ports.provisioner.renew_credentials(self._id)
                self._answer(message, credentials)
            case GrantSqlAccess() | RevokeSqlAccess():
                self._change_sql_access(message, command)
            case AddTopics():
                before = self._exists().topics
                state = self._record(command, message.metadata)
                if state.topics == before:
                    self._answer(message)
                    return
                self._begin_provisioning()
                self._ports.provisioner.administration.ensure_topology(topology_of(state))
                # A consumer's queues are fixed: it finishes, and a new one takes all of them.
                self._drain_consumer(partial(self._consume, message, None))
            case RequestDeletion():
                self._record(command, message.metadata)
                self._deletion_waiters.append(message)
                self._drain_consumer(self._delete)
            case _:
                raise TypeError(f"{type(command).__name__} is no command from outside")

    def _change_sql_access(
        self, message: Execute, command: GrantSqlAccess | RevokeSqlAccess
    ) -> None:
        decide(self._state, command)  # refused before anything is done
        access = self._ports.provisioner.sql_access
        self._begin_provisioning()
        try:
            if isinstance(command, GrantSqlAccess):
                granted = access.grant(self._id)
            else:
                granted = None
                access.revoke(self._id)
        except StoreUnavailableError:
            raise
        except MessageStoreError as error:
            # Most likely the daemon's user may not make roles: nothing is wrong with the tenant.
            refuse(message, CommandFailedError(f"tenant {self._id!r}: {error}"))
            return
        self._record(command, message.metadata)
        self._answer(message, sql_credentials=granted)

    def _create(self, message: Execute, command: CreateTenant) -> None:
        state = self._record(command, message.metadata)
        try:
            self._begin_provisioning()
            credentials = self._ports.provisioner.provision(state)
            self._record(ConfirmProvisioned(tenant_id=self._id), message.metadata)
        except (BrokerError, MessageStoreError, JournalError) as error:
            log.warning("tenant.provisioning_failed", error=str(error))
            self._abandoned = str(error)
            undone = self._abandon(message.metadata)
            effect = "what was made is undone" if undone else "what was made will be undone"
            refuse(
                message,
                CommandFailedError(
                    f"tenant {self._id!r} could not be provisioned: {error}; {effect}"
                ),
            )
            if not undone:
                self._try_again(error)
            return
        log.info("tenant.created")
        self._unused = True
        self._consume(message, credentials)

    def _abandon(self, metadata: Metadata) -> bool:
        """Undo a failed provisioning and record that; tell whether it is done."""
        self._begin_provisioning()
        if not self._ports.provisioner.undo(self._id):
            return False
        reason = self._abandoned or "provisioning failed"
        try:
            self._record(AbandonProvisioning(tenant_id=self._id, reason=reason), metadata)
        except JournalError as error:
            log.warning("tenant.undo_failed", error=str(error))
            return False
        self._abandoned = None
        self._leave()
        return True

    def _consume(self, message: Execute, credentials: Credentials | None) -> None:
        """See that a tenant that is active consumes, and answer when it does."""
        if self._exists().lifecycle is not Lifecycle.ACTIVE or self._board.consuming:
            self._answer(message, credentials)
            return
        self._ready_waiters.append((message, credentials))
        self._reconcile()

    def _delete(self) -> None:
        """Remove what is outside; during an outage, as soon as it is over."""
        state = self._exists()
        self._begin_provisioning()
        self._changed_at = self._ports.clock.now()
        try:
            removed = self._ports.provisioner.remove(self._id, retain=state.retained)
            self._record(
                ConfirmDeleted(tenant_id=self._id, queued=removed.queued, stored=removed.stored),
                Metadata(actor="tenant"),
            )
        except Unavailable as error:
            self._try_again(error)
            return
        log.info("tenant.deleted", queued=removed.queued, stored=removed.stored)
        waiters, self._deletion_waiters = self._deletion_waiters, []
        for waiter in waiters:
            self._answer(waiter)
        self._leave()

    # The state, and making it so.

    def _record(self, command: Command, metadata: Metadata) -> TenantState:
        """Decide a command, append its events, fold them; the state after them."""
        for attempt in range(CONFLICTS):
            events = decide(self._state, command)
            if not events:
                break
            expected = 0 if self._state is None else self._state.version
            self.beat()
            began = self._ports.clock.now()
            try:
                recorded = self._ports.journal.append(
                    names.journal_stream(self._id), events, expected=expected, metadata=metadata
                )
            except VersionConflictError:
                if attempt == CONFLICTS - 1:
                    raise
                self._state = load_tenant(self._ports.journal, self._id)
                continue
            took = self._ports.clock.now() - began
            self._ports.observer.journal_appended(len(recorded), took)
            state = fold(
                zip(events, (one.recorded_at for one in recorded), strict=True), self._state
            )
            self._state = state
            if state is not None and snapshot_due(expected, state.version):
                self._keep_snapshot(state)
            break
        self._board.state = self._state
        state = self._state
        if state is None:
            raise RuntimeError("a command was accepted and left no state")
        return state

    def _keep_snapshot(self, state: TenantState) -> None:
        try:
            self._ports.journal.save_snapshot(snapshot_of(state))
        except JournalError as error:
            # It only saves time; the next one will do.
            log.warning("tenant.snapshot_failed", error=str(error))

    def _exists(self) -> TenantState:
        if self._state is None:
            raise RuntimeError("the tenant has no state yet")
        return self._state

    def _reconcile(self) -> None:
        """Bring about what the state says. An outage is waited out; any other failure is one."""
        if self._draining or self._gone or self._after_drain:
            return
        try:
            self._make_it_so()
        except Unavailable as error:
            self._try_again(error)
            return
        self._failures = 0
        self._board.store_down = False
        if self._queue_gone is not None:
            gone = Drift(kind=DriftKind.QUEUE, found=self._queue_gone)
            self._queue_gone = None
            self._confirm_mended((gone,))

    def _drifted(self, message: Drifted) -> None:
        """Mend what has changed behind our back; not what we have changed ourselves since."""
        if self._draining or self._gone or self._after_drain:
            return
        state = self._state
        if self._loaded and state is not None and message.seen_at >= self._changed_at:
            settled = state.lifecycle in {Lifecycle.ACTIVE, Lifecycle.PAUSED}
            if settled or not state.exists:
                self._begin_provisioning()
                mended = self._mender.mend(
                    state, message.drift, resubscribe=self._children.resubscribe
                )
                self._confirm_mended(mended)
        if message.leftover:
            self._gone_if_unknown()

    def _queues_silent(self, queues: tuple[str, ...]) -> None:
        """Make queues anew that do not answer, if it is certain that nothing is in them."""
        state = self._state
        if self._draining or self._gone or self._after_drain or state is None or not state.exists:
            return
        self._begin_provisioning()
        mended = self._mender.silent(
            state, queues, unused=self._unused, resubscribe=self._children.resubscribe
        )
        self._confirm_mended(mended)

    def _confirm_mended(self, mended: Sequence[Drift]) -> None:
        """Record what was mended. It is no matter if the journal is away: it was logged."""
        command = self._mender.confirmation(mended)
        if command is None:
            return
        try:
            self._record(command, Metadata(actor="reconciler"))
        except JournalError as error:
            log.warning("tenant.repair_unrecorded", error=str(error))

    def _make_it_so(self) -> None:
        if not self._loaded:
            state = load_tenant(self._ports.journal, self._id)
            if state is not None and state.exists:
                # First the totals, then the state: whoever sees a tenant sees them right.
                self._show_totals()
            self._state = self._board.state = state
            self._loaded = True
        state = self._state
        if state is None or not state.exists:
            return
        if self._park is not None and not self._stand_still(self._park):
            return
        state = self._exists()
        match state.lifecycle:
            case Lifecycle.PROVISIONING if self._abandoned is not None:
                if not self._abandon(Metadata(actor="tenant")):
                    raise BrokerUnavailableError("what was half-made can't be undone yet")
            case Lifecycle.PROVISIONING:
                self._restore(state)
                self._record(ConfirmProvisioned(tenant_id=self._id), Metadata(actor="tenant"))
                self._unused = True
                self._start_consumer()
            case Lifecycle.ACTIVE:
                self._restore(state)
                self._start_consumer()
            case Lifecycle.PAUSED:
                if state.parked is None:
                    self._restore(state)
            case Lifecycle.DRAINING:
                self._delete()
            case Lifecycle.DELETED:
                pass

    def _stand_still(self, reason: str) -> bool:
        """Park the tenant; tell whether to go on, as its state then says.

        One that is being made or deleted can't be parked, and goes on after a while.
        """
        state = self._exists()
        if state.lifecycle in {Lifecycle.PROVISIONING, Lifecycle.DRAINING}:
            log.error("tenant.stands_still", reason=reason, seconds=HOPELESS)
            self._park = None
            self._retrying = True
            self._ports.clock.tell_later(HOPELESS, self.actor_ref, TryAgain())
            return False
        if state.lifecycle is Lifecycle.ACTIVE:
            self._record(
                ParkTenant(tenant_id=self._id, reason=reason), Metadata(actor="supervisor")
            )
            log.error("tenant.parked", reason=reason)
        self._park = None
        self._board.stands_still = None
        self.tell_parent(Parked(tenant_id=self._id))
        return True

    def _restore(self, state: TenantState) -> None:
        self._begin_provisioning()
        self._ports.provisioner.restore(state)

    def _begin_provisioning(self) -> None:
        queues = 0 if self._state is None else len(topology_of(self._state).queues())
        self.beat(PROVISIONING_SECONDS + QUEUE_SECONDS * queues)

    def _try_again(self, error: Exception) -> None:
        self._failures += 1
        if self._retrying:
            return
        self._retrying = True
        delay = backoff(self._failures, LONGEST_WAIT)
        log.warning("tenant.waits_for_outage", error=str(error), retry_in=round(delay, 2))
        self._ports.clock.tell_later(delay, self.actor_ref, TryAgain())

    def _gone_if_unknown(self) -> None:
        """Let the actor go that a refused creation has left without a tenant."""
        if self._state is None or not self._state.exists:
            self._leave()

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self.tell_parent(TenantGone(tenant_id=self._id, ref=self.actor_ref))

    def _answer(
        self,
        message: Execute,
        credentials: Credentials | None = None,
        *,
        sql_credentials: SqlCredentials | None = None,
    ) -> None:
        outcome = Outcome(
            tenant=self._exists(),
            runtime=self._board.runtime(),
            credentials=credentials,
            sql_credentials=sql_credentials,
        )
        answer(message, outcome)

    # Children.

    def _start_consumer(self) -> None:
        if self._children.consumer is None:
            self._show_totals()
        self._children.consume(self._exists())

    def _show_totals(self) -> None:
        """Put the tenant's totals on the board as the database has them."""
        counts = self._ports.messages.counts(self._id)
        board = self._board
        board.stored = counts.stored
        board.duplicates = counts.duplicates
        board.dead_lettered = counts.dead_lettered
        board.letters_found = 0

    def _ready(self) -> None:
        log.info("tenant.consuming")
        self._unused = False
        waiters, self._ready_waiters = self._ready_waiters, []
        for waiter, credentials in waiters:
            self._answer(waiter, credentials)

    def _child_failed(self, child: Ref, error: str, *, stuck: bool = False) -> None:
        delay = self._children.failed(child, error, stuck=stuck)
        if delay is None:
            return
        if self._after_drain:
            self._consumer_drained()
        else:
            self._ports.clock.tell_later(delay, self.actor_ref, RestartChild(name="consumer"))

    # Draining.

    def _drain(self) -> None:
        self._draining = True
        for waiter, _ in self._ready_waiters:
            refuse(waiter, UnavailableError("the daemon is draining"))
        self._ready_waiters.clear()
        self._drain_consumer(lambda: self.tell_parent(Drained(name=self._id)))

    def _drain_consumer(self, then: Callable[[], None]) -> None:
        """Have the consumer finish what it has accepted, let it go, then go on with `then`."""
        if self._children.consumer is None:
            then()
            return
        self._after_drain.append(then)
        tell(self._children.consumer, Drain())

    def _consumer_drained(self) -> None:
        self._children.stop()
        after, self._after_drain = self._after_drain, []
        for then in after:
            then()
        while self._stash and not self._after_drain:
            self._execute(self._stash.popleft())
