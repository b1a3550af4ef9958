"""The tenant: takes its commands, records what comes of them, and makes it so.

It owns one consumer and its workers. Whatever it does outside is brought about from its state, so
that after a fault it only has to begin again.
"""

from __future__ import annotations

from functools import partial

import structlog

from tenantry.actors.board import TenantBoard
from tenantry.actors.callers import Callers
from tenantry.actors.children import Children
from tenantry.actors.clock import tell
from tenantry.actors.life import Life
from tenantry.actors.mending import Mender
from tenantry.actors.messages import (
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
from tenantry.actors.ports import TenantPorts
from tenantry.actors.record import Record
from tenantry.actors.retrying import Retries, Unavailable
from tenantry.actors.supervision import SupervisedActor, claim, refuse
from tenantry.broker.port import Credentials
from tenantry.control.port import CommandFailedError, UnavailableError
from tenantry.domain.commands import (
    AddTopics,
    CreateTenant,
    GrantSqlAccess,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeSqlAccess,
    RotateCredentials,
)
from tenantry.domain.errors import DomainError
from tenantry.domain.tenant import Lifecycle

log = structlog.get_logger("actors.tenant")


class Tenant(SupervisedActor):
    """One tenant. Commands are handled one at a time, in the order they come.

    Its parts have their own names: the `Record` of what has happened, the `Life` outside that
    follows it, the `Children` that work, the `Callers` that wait for an answer.
    """

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
        self._board = board
        self._clock = ports.clock
        self._fresh = fresh
        self._gone = False
        self._draining = False
        self._park: str | None = None
        self._retries = Retries(actor=self.actor_ref, clock=ports.clock)
        self._record = Record(
            tenant_id=tenant_id,
            journal=ports.journal,
            board=board,
            clock=ports.clock,
            observer=ports.observer,
            beat=self.pulse.go_on,
        )
        self._life = Life(
            tenant_id=tenant_id,
            record=self._record,
            provisioner=ports.provisioner,
            clock=ports.clock,
            beat=self.pulse.go_on,
        )
        self._children = Children(
            tenant_id=tenant_id,
            parent=self.actor_ref,
            board=board,
            ports=ports,
        )
        self._mender = Mender(
            tenant_id=tenant_id,
            record=self._record,
            life=self._life,
            provisioner=ports.provisioner,
            clock=ports.clock,
            observer=ports.observer,
            resubscribe=self._children.resubscribe,
        )
        self._callers = Callers(record=self._record, board=board)
        self.pulse.on_fence(self._callers.refuse_all)

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
                log.info("tenant.consuming")
                self._life.unused = False
                self._callers.consuming()
            case Resized():
                self._callers.resized()
            case TopologyMissing(reason=reason):
                self._mender.missing(reason)
                self._reconcile()
            case QueuesSilent(queues=queues):
                if not self._hands_off:
                    self._mender.silent(queues)
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
                self._retries.due()
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
        self._callers.refuse_all()

    # Commands.

    def _execute(self, message: Execute) -> None:
        structlog.contextvars.bind_contextvars(correlation_id=message.metadata.correlation_id)
        self._callers.carried = message
        try:
            if self._gone:
                # The supervisor is about to let this actor go; it routes the command anew.
                self.tell_parent(message)
            elif self._draining:
                refuse(message, UnavailableError("the daemon is draining"))
            elif not self._record.loaded:
                refuse(message, UnavailableError("the tenant's events can't be read yet"))
                if self._fresh:
                    self._leave()
            elif self._children.finishing:
                self._callers.put_aside(message)
            else:
                self._carry_out(message)
        except (DomainError, CommandFailedError) as error:
            refuse(message, error)
            self._leave_if_unknown()
            self._make_good(error)
        except Unavailable as error:
            refuse(message, UnavailableError(str(error)))
            self._leave_if_unknown()
            self._make_good(error)
        except Exception as error:
            refuse(message, CommandFailedError(f"tenant {self._id!r}: {error}"))
            raise
        finally:
            self._callers.carried = None
            self._life.changed()
            structlog.contextvars.unbind_contextvars("correlation_id")

    def _carry_out(self, message: Execute) -> None:
        command, metadata = message.command, message.metadata
        callers, life = self._callers, self._life
        match command:
            case CreateTenant():
                self._create(message, command)
            case ResizeWorkers(workers=workers):
                self._record.add(command, metadata)
                if self._children.consumer is None:
                    callers.answer(message)
                else:
                    callers.until_resized(message)
                    tell(self._children.consumer, Resize(workers=workers))
            case PauseTenant():
                self._record.add(command, metadata)
                self._children.drain(partial(callers.answer, message))
            case ResumeTenant():
                self._record.add(command, metadata)
                self._board.restarts = 0
                self._consume(message, None)
            case RotateCredentials():
                credentials = life.rotate_credentials(
                    command, metadata, claim=partial(claim, message)
                )
                callers.answer(message, credentials)
            case GrantSqlAccess() | RevokeSqlAccess():
                granted = life.change_sql_access(command, metadata, claim=partial(claim, message))
                callers.answer(message, sql_credentials=granted)
            case AddTopics():
                if life.add_topics(command, metadata):
                    # A consumer's queues are fixed: it finishes, and a new one takes all of them.
                    self._children.drain(partial(self._consume, message, None))
                else:
                    callers.answer(message)
            case RequestDeletion():
                self._record.add(command, metadata)
                callers.until_deleted(message)
                self._children.drain(self._delete)
            case _:
                raise TypeError(f"{type(command).__name__} is no command from outside")

    def _make_good(self, error: Exception) -> None:
        """See soon to what a refused command has left undone outside."""
        if self._life.owing:
            self._retries.after(error)

    def _create(self, message: Execute, command: CreateTenant) -> None:
        try:
            credentials = self._life.create(command, message.metadata)
        except CommandFailedError as error:
            if self._record.exists:
                self._retries.after(error)  # What was made is still to be undone.
            raise
        self._consume(message, credentials)

    def _consume(self, message: Execute, credentials: Credentials | None) -> None:
        """See that a tenant that is active consumes, and answer when it does."""
        active = self._record.known().lifecycle is Lifecycle.ACTIVE
        if not active or self._board.consuming:
            self._callers.answer(message, credentials)
            return
        self._callers.until_consuming(message, credentials)
        self._reconcile()

    def _delete(self) -> None:
        """Remove what is outside; during an outage, as soon as it is over."""
        try:
            self._make_it_so()
        except Unavailable as error:
            self._retries.after(error)

    # Making so what the state says.

    @property
    def _hands_off(self) -> bool:
        """Whether nothing is to be started or mended: it ends, or something is being finished."""
        return self._draining or self._gone or self._children.finishing

    def _reconcile(self) -> None:
        """Bring about what the state says. An outage is waited out; any other failure is one."""
        if self._hands_off:
            return
        try:
            if not self._record.loaded:
                self._record.load(self._children.show_totals)
            if self._record.exists and self._goes_on():
                self._make_it_so()
        except Unavailable as error:
            self._retries.after(error)
            return
        self._retries.succeeded()
        self._board.store_down = False
        self._mender.made_again()

    def _goes_on(self) -> bool:
        """Park the tenant, if that is asked for; tell whether to go on, as its state then says."""
        reason = self._park
        if reason is None:
            return True
        parked = self._life.park(reason)
        self._park = None
        if not parked:
            self._retries.much_later(reason)
            return False
        self._board.stands_still = None
        self.tell_parent(Parked(tenant_id=self._id))
        return True

    def _make_it_so(self) -> None:
        state = self._life.make_it_so()
        if state.lifecycle is Lifecycle.ACTIVE:
            if self._children.outdated(state):
                # A consumer's queues are fixed: it finishes, and a new one takes all of them.
                self._children.drain(self._reconcile)
            else:
                self._children.consume(state)
        elif not state.exists:
            self._callers.deleted()
            self._leave()

    def _drifted(self, message: Drifted) -> None:
        if self._hands_off:
            return
        self._mender.mend(message.drift, seen_at=message.seen_at)
        if message.leftover:
            self._leave_if_unknown()

    def _leave_if_unknown(self) -> None:
        """Let the actor go that a refused creation has left without a tenant."""
        if not self._record.exists:
            self._leave()

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self.tell_parent(TenantGone(tenant_id=self._id, ref=self.actor_ref))

    # Children that fail, and draining.

    def _child_failed(self, child: Ref, error: str, *, stuck: bool = False) -> None:
        delay = self._children.failed(child, error, stuck=stuck)
        if delay is None:
            return
        if self._children.finishing:
            self._consumer_drained()
        else:
            self._clock.tell_later(delay, self.actor_ref, RestartChild(name="consumer"))

    def _drain(self) -> None:
        self._draining = True
        self._callers.will_not_consume(UnavailableError("the daemon is draining"))
        self._children.drain(lambda: self.tell_parent(Drained(name=self._id)))

    def _consumer_drained(self) -> None:
        self._children.drained()
        while not self._children.finishing and (message := self._callers.take_aside()):
            self._execute(message)
