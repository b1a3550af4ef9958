"""Who waits for an answer of a tenant, and until what has come about."""

from __future__ import annotations

from collections import deque
from typing import Final

from tenantry.actors.board import TenantBoard
from tenantry.actors.messages import Execute
from tenantry.actors.record import Record
from tenantry.actors.supervision import answer, refuse
from tenantry.broker.port import Credentials
from tenantry.control.port import Outcome, UnavailableError
from tenantry.messages.sql_access import SqlCredentials

LONGEST_STASH: Final = 100
"""Commands that may be put aside while a consumer drains."""


class Callers:
    """The commands that a tenant has taken and not answered. Each is answered once, whatever comes.

    Used by the tenant, in its own thread; `refuse_all` from any.
    """

    def __init__(self, *, record: Record, board: TenantBoard) -> None:
        self._record = record
        self._board = board
        self.carried: Execute | None = None
        """What the actor is about to carry out."""
        self._aside: deque[Execute] = deque()
        self._until_consuming: list[tuple[Execute, Credentials | None]] = []
        self._until_resized: list[Execute] = []
        self._until_deleted: list[Execute] = []

    def answer(
        self,
        message: Execute,
        credentials: Credentials | None = None,
        *,
        sql_credentials: SqlCredentials | None = None,
    ) -> None:
        """Answer with the tenant as it is now."""
        outcome = Outcome(
            tenant=self._record.known(),
            runtime=self._board.runtime(),
            credentials=credentials,
            sql_credentials=sql_credentials,
        )
        answer(message, outcome)

    # Until the consumer has drained.

    def put_aside(self, message: Execute) -> None:
        """Keep a command until it can be carried out; refuse it where too many are kept."""
        if len(self._aside) >= LONGEST_STASH:
            refuse(message, UnavailableError("too many commands wait for this tenant"))
        else:
            self._aside.append(message)

    def take_aside(self) -> Execute | None:
        """Give the command that was put aside first, and keep it no longer."""
        return self._aside.popleft() if self._aside else None

    # Until something has come about.

    def until_consuming(self, message: Execute, credentials: Credentials | None) -> None:
        """Answer a command, with credentials perhaps, once the tenant consumes."""
        self._until_consuming.append((message, credentials))

    def consuming(self) -> None:
        """Answer those who have waited for that."""
        waiters, self._until_consuming = self._until_consuming, []
        for message, credentials in waiters:
            self.answer(message, credentials)

    def will_not_consume(self, error: Exception) -> None:
        """Refuse those who wait for that."""
        for message, _ in self._until_consuming:
            refuse(message, error)
        self._until_consuming.clear()

    def until_resized(self, message: Execute) -> None:
        """Answer a command once the number of workers is in force."""
        self._until_resized.append(message)

    def resized(self) -> None:
        """Answer those who have waited for that."""
        waiters, self._until_resized = self._until_resized, []
        for message in waiters:
            self.answer(message)

    def until_deleted(self, message: Execute) -> None:
        """Answer a command once the tenant is gone."""
        self._until_deleted.append(message)

    def deleted(self) -> None:
        """Answer those who have waited for that."""
        waiters, self._until_deleted = self._until_deleted, []
        for message in waiters:
            self.answer(message)

    def refuse_all(self) -> None:
        """Refuse what is not answered: the actor has stopped, or was replaced."""
        waiting = [message for message, _ in self._until_consuming]
        carried = [] if (message := self.carried) is None else [message]
        for message in (
            *carried, *waiting, *self._until_resized, *self._until_deleted, *self._aside
        ):  # fmt: skip
            refuse(message, UnavailableError("the tenant's actor has stopped; try again"))
