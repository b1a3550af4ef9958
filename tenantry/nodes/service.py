"""Keeps a node among the others: a thread that looks when it is told to, and often by itself."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import psycopg
import structlog
from psycopg import sql

from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Connection, Database
from tenantry.loops import Heartbeat, ThreadWakeup
from tenantry.nodes.membership import Membership
from tenantry.sql import queries
from tenantry.terms.lease import LOOK_EVERY
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("nodes")

LONGEST_TURN: Final = 120.0
"""Seconds after which a turn is taken to hang; each of its calls is bounded."""

FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 2.0


class MembershipService:
    """Gives a membership its turns, on a connection of its own that hears of changes."""

    def __init__(
        self,
        database: Database,
        membership: Membership,
        *,
        after_turn: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Each of `after_turn` is called when a turn has been taken."""
        self._after_turn = after_turn
        self.heartbeat: Final = Heartbeat()
        self._database = database
        self._membership = membership
        self._stopping = threading.Event()
        self._wakeup = ThreadWakeup()

    def wake(self) -> None:
        """Have the next turn now; from any thread."""
        self._wakeup.set()

    def run(self) -> None:
        """Turn after turn, until `stop`; an outage is waited out."""
        delay, failed = FIRST_DELAY, False
        while not self._stopping.is_set():
            self.heartbeat.beat(LONGEST_TURN)
            try:
                with self._database.listen_connection() as connection:
                    self._listen(connection)
                    delay, failed = FIRST_DELAY, False
                    self._turns(connection)
            except (DatabaseError, UnavailableError, psycopg.Error) as error:
                if not failed:
                    log.warning("nodes.out_of_reach", error=one_line(error))
                failed = True
                self._membership.interrupted()
            self._stopping.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(LAST_DELAY, delay * 2)

    def stop(self) -> None:
        """Make `run` return after its turn; harmless twice, and before `run`."""
        self._stopping.set()
        self._wakeup.set()

    def _listen(self, connection: Connection) -> None:
        row = connection.execute(queries("nodes")["channel"]).fetchone()
        if row is not None:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(row[0])))

    def _turns(self, connection: Connection) -> None:
        told, heard = True, 0.0
        while not self._stopping.is_set():
            self.heartbeat.beat(LONGEST_TURN)
            self._membership.turn(told=told)
            for go_on in self._after_turn:
                go_on()
            self._wakeup.wait(connection.fileno(), LOOK_EVERY)
            self._wakeup.clear()
            # What a notice says is not believed. A server that has fallen silent is asked, too.
            told = any(True for _ in connection.notifies(timeout=0))
            if time.monotonic() - heard > LAST_DELAY:
                connection.execute("SELECT")
                heard = time.monotonic()
