"""The commands that a tenant has taken and not answered yet. Each is answered once."""

from __future__ import annotations

from collections import deque
from concurrent.futures import InvalidStateError
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from tenantry.actors.messages import Execute
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.actors.supervision import refuse
from tenantry.actors.tenant_aggregate import TenantAggregate
from tenantry.broker.port import Credentials
from tenantry.control.port import CommandFailedError, ControlUnavailableError, Outcome
from tenantry.messages.sql_access import SqlCredentials

MOST_POSTPONED: Final = 100
"""Commands that may be postponed while a consumer drains."""


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
