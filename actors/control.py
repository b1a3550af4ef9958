"""Both ends of a command: `ActorControl` sends it and waits, `PendingReplies` answers it.

`ActorControl` is the `Control` port; the answers are what a tenant's actor owes to it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum, auto
from typing import Final

from tenantry import __version__
from tenantry.actors.messages import DrainAll, Execute, Ping, Ref
from tenantry.actors.ports import AllMine, Ownership
from tenantry.actors.runtime_state import RuntimeState, TenantRuntimeState
from tenantry.actors.supervision import refuse, tell
from tenantry.actors.tenant_aggregate import TenantAggregate
from tenantry.actors.watch import Watch
from tenantry.broker.port import Credentials
from tenantry.control.port import (
    CommandFailedError,
    CommandTimeoutError,
    ControlUnavailableError,
    ElsewhereError,
    Outcome,
    Readiness,
    SystemStatus,
    TenantRuntime,
    TermStatus,
)
from tenantry.domain import names
from tenantry.domain.commands import CreateTenant, OperatorCommand
from tenantry.journal.port import Metadata
from tenantry.messages.sql_access import SqlCredentials
from tenantry.nodes.port import Glance
from tenantry.tracing import Tracer
from tenantry.unavailable import UnavailableError

LAST_STEP_SECONDS: Final = 30.0
"""Extra seconds to wait for a command whose last step, an append, has begun."""

MOST_POSTPONED: Final = 100
"""Commands that may be postponed while a consumer drains."""


@dataclass(slots=True)
class ActorControl:
    """The running system behind the `Control` port."""

    _supervisor: Ref
    _runtime: RuntimeState
    _watch: Watch
    _: KW_ONLY
    drain_seconds: float
    on_stop: Callable[[], None]
    on_drain: Callable[[], bool] = lambda: False
    term: TermStatus | None = None
    ownership: Ownership = field(default_factory=AllMine)
    node: str | None = None
    nodes: Callable[[], Sequence[Glance]] = tuple
    tracer: Tracer = field(default_factory=Tracer)

    def execute(self, command: OperatorCommand, *, metadata: Metadata, timeout: float) -> Outcome:
        """Send a command down the tree and wait for its answer."""
        self._admit(command)
        reply: Future[Outcome] = Future()
        asked = self.tracer.current()
        message = Execute(command=command, metadata=metadata, reply=reply, asked=asked)
        if not tell(self._supervisor, message):
            raise ControlUnavailableError("the daemon is stopping")
        try:
            return reply.result(timeout)
        except FutureTimeoutError:
            if not reply.cancel():
                # The last step has begun, on the promise that the caller waits.
                with suppress(FutureTimeoutError):
                    return reply.result(LAST_STEP_SECONDS)
            raise CommandTimeoutError(
                f"no answer within {timeout:g} s; the command may still be carried out"
            ) from None

    def _admit(self, command: OperatorCommand) -> None:
        """Raise `ElsewhereError` where the command's tenant belongs to another node."""
        tenant_id = command.tenant_id
        try:
            if self.ownership.owns(tenant_id) or not names.is_tenant_id(tenant_id):
                return
            if isinstance(command, CreateTenant) and self.ownership.claim(tenant_id):
                return
            other = self.ownership.elsewhere(tenant_id)
        except UnavailableError as error:
            raise ControlUnavailableError(str(error)) from error
        if other is not None:
            raise ElsewhereError(f"tenant {tenant_id!r} is at work on node {other}")

    def status(self) -> SystemStatus:
        """Return the status of the whole system."""
        runtime = self._runtime
        reasons = runtime.not_ready()
        return SystemStatus(
            state=runtime.state,
            ready=not reasons,
            reasons=reasons,
            started_at=runtime.started_at,
            version=__version__,
            pid=os.getpid(),
            term=self.term,
            node=self.node,
            nodes=self.nodes(),
            tree=runtime.tree(),
            abandoned=tuple(one.name for one in runtime.departures.abandoned),
            tenants=runtime.snapshots(),
        )

    def readiness(self) -> Readiness:
        """Return whether the daemon is ready, and why not."""
        reasons = self._runtime.not_ready()
        return Readiness(state=self._runtime.state, reasons=reasons)

    def runtime(self, tenant_id: str) -> TenantRuntime | None:
        """Return what one tenant's actors are doing."""
        return self._runtime.snapshot(tenant_id)

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        """Return what all tenants' actors are doing."""
        return self._runtime.snapshots()

    def liveness(self) -> tuple[str, ...]:
        """Return why the process can't go on; empty while it can."""
        return self._watch.liveness()

    def ping(self) -> Future[None]:
        """Ask the supervisor for a sign of life."""
        reply: Future[None] = Future()
        if not tell(self._supervisor, Ping(reply=reply)):
            raise ControlUnavailableError("the supervisor is dead")
        return reply

    def drain(self) -> None:
        """Begin to drain without stopping: by `on_drain`, or else only this process."""
        if not self.on_drain():
            self.drain_here()

    def drain_here(self) -> None:
        """Begin to drain this process without stopping."""
        drain = DrainAll(seconds=self.drain_seconds, stop=False, reply=Future())
        if not tell(self._supervisor, drain):
            raise ControlUnavailableError("the daemon is stopping")

    def stop(self) -> None:
        """Begin the shutdown."""
        self.on_stop()


def claim(message: Execute) -> None:
    """Commit the command's sender to wait for the answer, before a new password becomes final.

    Raises `CommandFailedError` where the sender has stopped waiting.
    """
    reply = message.reply
    if reply.done() or not reply.set_running_or_notify_cancel():
        raise CommandFailedError(
            f"tenant {message.command.tenant_id!r}: nobody waits for the new password any more;"
            " it is dropped"
        )


class Awaited(Enum):
    """The event that an answer may wait for."""

    CONSUMING = auto()
    RESIZED = auto()
    DELETED = auto()


class PendingReplies:
    """The commands that the tenant's actor has to answer.

    Used by the tenant, in its own thread; `refuse_all` from any.
    """

    def __init__(self, *, aggregate: TenantAggregate, runtime: TenantRuntimeState) -> None:
        self._aggregate = aggregate
        self._runtime = runtime
        self._waiting: Final[dict[Awaited, list[tuple[Execute, Credentials | None]]]] = {
            event: [] for event in Awaited
        }
        self._postponed: deque[Execute] = deque()
        self.executing: Execute | None = None
        """The command that the actor is carrying out."""

    @property
    def awaited(self) -> bool:
        """Whether a command waits for an event, or is postponed."""
        return bool(self._postponed) or any(self._waiting.values())

    def answer(
        self,
        message: Execute,
        credentials: Credentials | None = None,
        *,
        sql_credentials: SqlCredentials | None = None,
    ) -> None:
        """Answer with the tenant as it is now, unless the sender has stopped waiting."""
        outcome = Outcome(
            tenant=self._aggregate.known(),
            runtime=self._runtime.snapshot(),
            credentials=credentials,
            sql_credentials=sql_credentials,
        )
        with suppress(InvalidStateError):
            message.reply.set_result(outcome)

    def answer_when(
        self, event: Awaited, message: Execute, credentials: Credentials | None = None
    ) -> None:
        """Answer a command, with credentials perhaps, once an event has happened."""
        self._waiting[event].append((message, credentials))

    def happened(self, event: Awaited) -> None:
        """Answer the commands that have waited for this."""
        waiting, self._waiting[event] = self._waiting[event], []
        for message, credentials in waiting:
            self.answer(message, credentials)

    def cannot_happen(self, event: Awaited, error: Exception) -> None:
        """Refuse the commands that wait for this."""
        waiting, self._waiting[event] = self._waiting[event], []
        for message, _ in waiting:
            refuse(message, error)

    def postpone(self, message: Execute) -> None:
        """Keep a command until the consumer has drained; refuse it where too many are kept."""
        if len(self._postponed) >= MOST_POSTPONED:
            refuse(message, ControlUnavailableError("too many commands wait for this tenant"))
        else:
            self._postponed.append(message)

    def next_postponed(self) -> Execute | None:
        """Remove and return the command that was postponed first."""
        return self._postponed.popleft() if self._postponed else None

    def refuse_all(self) -> None:
        """Refuse all unanswered commands: the actor has stopped, or was replaced."""
        executing = [] if (message := self.executing) is None else [message]
        waiting = [message for event in Awaited for message, _ in self._waiting[event]]
        for message in (*executing, *waiting, *self._postponed):
            refuse(message, ControlUnavailableError("the tenant's actor has stopped; try again"))
