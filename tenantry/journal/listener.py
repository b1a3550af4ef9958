"""Learns of appends as soon as they are committed, whichever process makes them."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import errors, sql

from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Connection, Database
from tenantry.loops import Heartbeat
from tenantry.sql import queries


class AppendSignal:
    """The highest known position of the journal, and a way to wait for more. Thread-safe."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._position = 0

    def notify(self, position: int) -> None:
        """Announce that the journal has reached `position`; an older one changes nothing."""
        with self._moved:
            if position > self._position:
                self._position = position
                self._moved.notify_all()

    def wait(self, after: int, timeout: float) -> bool:
        """Wait `timeout` seconds at most; return whether the journal is known to exceed `after`."""
        with self._moved:
            return self._moved.wait_for(lambda: self._position > after, max(0.0, timeout))


SLICE: Final = 0.2
"""Seconds between checks for a request to stop."""

LOOK_EVERY: Final = 1.0
"""Seconds after which the listener queries the journal's head: a notification may be missing, and a
silent server looks like one without news."""

FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 5.0

log = logging.getLogger(__name__)


class JournalListener:
    """LISTENs on a connection of its own and notifies `appends`; survives the server's absence.

    `run` blocks on the thread that calls it, until `stop`, which any thread may call.
    """

    def __init__(self, database: Database) -> None:
        self.appends: Final = AppendSignal()
        self.heartbeat: Final = Heartbeat()
        self._database = database
        self._stopping = threading.Event()
        self._connected = threading.Event()

    @property
    def connected(self) -> bool:
        """Whether the listener is notified of appends now."""
        return self._connected.is_set()

    def run(self) -> None:
        """Listen until stopped; connect again, with growing delays, whenever that fails."""
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            self.heartbeat.beat()
            try:
                with self._database.listen_connection() as connection:
                    self._begin(connection)
                    delay = FIRST_DELAY
                    self._listen(connection)
            except (DatabaseError, psycopg.Error, UnicodeError) as error:
                log.warning("not listening to the journal: %s", one_line(error))
            finally:
                self._connected.clear()
            self._stopping.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(LAST_DELAY, delay * 2)

    def stop(self) -> None:
        """Make `run` return within a fraction of a second; harmless twice, and before `run`."""
        self._stopping.set()

    def _begin(self, connection: Connection) -> None:
        with suppress(errors.UndefinedTable):  # an older schema, which another daemon leads
            row = connection.execute(queries("journal")["channel"]).fetchone()
            if row is not None:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(row[0])))
        # Appends before LISTEN took effect are not notified: look once.
        self._look(connection)
        self._connected.set()

    def _look(self, connection: Connection) -> None:
        row = connection.execute(queries("journal")["head"]).fetchone()
        if row is not None:
            self.appends.notify(row[0])

    def _listen(self, connection: Connection) -> None:
        looked = time.monotonic()
        while not self._stopping.is_set():
            self.heartbeat.beat()
            told = list(connection.notifies(timeout=SLICE, stop_after=1))
            if told or time.monotonic() - looked > LOOK_EVERY:
                # A notification's payload is not trusted.
                self._look(connection)
                looked = time.monotonic()
