"""The way to PostgreSQL: a bounded pool of connections that survives the server's absence."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from tenantry.database import session
from tenantry.database.conninfo import resolved, url_for
from tenantry.database.errors import DatabaseUnavailableError, DatabaseUrlError
from tenantry.database.failures import (
    connect_failure,
    is_unavailable,
    lost_its_state,
    place,
    unavailable,
)
from tenantry.database.liveness import GivenUpError, has_died
from tenantry.database.sessions import LOCK_TIMEOUT, Sessions

Connection: TypeAlias = psycopg.Connection[TupleRow]
T = TypeVar("T")

ACQUIRE_TIMEOUT: Final = 5.0
"""Seconds a caller waits for a free connection."""

ACQUIRE_TIMEOUT_DOWN: Final = 1.0
"""Seconds a caller waits while the last attempt to connect has failed: long enough to retry."""

RECONNECT_FOR: Final = 3.0
"""Seconds the pool tries to replace a lost connection by itself.

Short on purpose: psycopg_pool doubles its delays, so after a long outage its next attempt could be
minutes away. Once the pool has given up, the next caller makes it try at once.
"""

REPLACED: Final = 3
"""Dead idle connections that are replaced before a connection is lent unchecked."""

STATEMENT_TIMEOUT: Final = 30.0
IDLE_IN_TRANSACTION_TIMEOUT: Final = 60.0

log = logging.getLogger(__name__)
# psycopg.pool warns of every attempt, on several lines; this module logs only changes.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
# It warns of a rollback on a lost connection; the original error is raised, and tells more.
logging.getLogger("psycopg.transaction").setLevel(logging.ERROR)


class Database:
    """Connections to one PostgreSQL database, autocommitting, bounded in number and in time.

    Every statement ends within `statement_timeout` seconds and waits for a lock for 10 at most. If
    the server falls silent (it is stopped, say), the statement is given up within some 10 seconds.
    Safe to use from any thread. The pool recovers from an outage by itself: when the first
    connection fails, all connections that were open then are discarded.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 20,
        min_size: int = 1,
        connect_timeout: float = 5.0,
        statement_timeout: float = STATEMENT_TIMEOUT,
        idle_timeout: float = IDLE_IN_TRANSACTION_TIMEOUT,
        term: str = "",
        read_only: bool = False,
        lends_path: bool = False,
    ) -> None:
        """Raises `DatabaseUrlError`; connects to nothing yet.

        The server ends a transaction that is idle for `idle_timeout` seconds. With a `term`, the
        sessions write only as long as the term lasts; with `read_only`, not at all. `lends_path`
        is for a pool whose sessions also run users' code: the search path of the database's user
        stays their default (`SET search_path TO DEFAULT`).
        """
        self._parameters = _parse(url)
        self._url = url
        self._where = place(self._parameters)
        self._pool_size = pool_size
        self._min_size = min(min_size, pool_size)
        self._statement_timeout = statement_timeout
        self._term = term
        self._pool: ConnectionPool[Connection] | None = None
        self._resolved: dict[str, object] = dict(self._parameters)
        self._guard = threading.Lock()
        self._drained_at = 0.0
        self._connect_failure: DatabaseUnavailableError | None = None
        self._sessions = Sessions(
            self._parameters,
            limits={
                "lock_timeout": LOCK_TIMEOUT,
                "idle_in_transaction_session_timeout": idle_timeout,
            },
            connect_timeout=connect_timeout,
            term=term,
            read_only=read_only,
            lends_path=lends_path,
        )

    def __repr__(self) -> str:
        return f"<Database {self._where}>"

    def beside(self, *, pool_size: int, statement_timeout: float, idle_timeout: float) -> Database:
        """Make another pool to the same database, for users' code; it is opened separately."""
        return Database(
            self._url,
            pool_size=pool_size,
            statement_timeout=statement_timeout,
            idle_timeout=idle_timeout,
            term=self._term,
            lends_path=True,
        )

    @property
    def where(self) -> str:
        """Host and name of the database, for people; no password."""
        return self._where

    def url_for(self, user: str, password: str) -> str:
        """Give the URL by which another user connects to this database."""
        return url_for(self._resolved, user, password)

    @property
    def url(self) -> str:
        """The URL it was created with, including the password."""
        return self._url

    def open(self, timeout: float = 10.0) -> None:
        """Connect; retry an unreachable server for `timeout` seconds.

        Raises `DatabaseUnavailableError` with one line that names the database, the reason and
        the remedy, at once where waiting can't help. Does nothing if the database is open.
        """
        if self._pool is not None:
            return
        self._probe(timeout)
        pool: ConnectionPool[Connection] = ConnectionPool(
            connection_class=self._sessions.kind(self._statement_timeout, self._note),
            kwargs=self._sessions.parameters,
            min_size=self._min_size,
            max_size=self._pool_size,
            timeout=ACQUIRE_TIMEOUT,
            reconnect_timeout=RECONNECT_FOR,
            name="tenantry",
            open=False,
        )
        pool.open()
        self._pool = pool

    def close(self) -> None:
        """Close every connection; harmless twice, and before `open`."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a connection, waiting `timeout` seconds for one (5, or 1 while the server is away).

        Inside, an error that means "not now" (connection lost, server shutting down, timeouts,
        deadlock, serialization failure) becomes `DatabaseUnavailableError`; errors of the
        statement or the data pass through. An open transaction is rolled back on an error and
        committed otherwise.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError(f"{self._where}: the database is not open")
        if timeout is None and self._connect_failure is not None:
            timeout = ACQUIRE_TIMEOUT_DOWN
        borrowed_at = time.monotonic()
        lost = False
        try:
            with self._lent(pool, timeout) as connection:
                borrowed_at = time.monotonic()
                try:
                    yield connection
                except BaseException as error:
                    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) or lost_its_state(
                        error
                    ):
                        connection.close()
                    lost = connection.closed and is_unavailable(error)
                    raise
        except BaseException as error:
            if lost:
                self._forget_idle_connections(pool, borrowed_at)
            if isinstance(error, PoolTimeout) and self._connect_failure is not None:
                raise _again(self._connect_failure) from error
            if is_unavailable(error):
                raise unavailable(error, self._where) from error
            raise

    @contextmanager
    def transaction(self, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a connection in a transaction, otherwise as `connection` does.

        If the server ends the connection before the transaction has begun, the caller gets another,
        once.
        """
        lent: Connection | None = None
        begun = False
        try:
            with self.connection(timeout) as lent, lent.transaction():
                begun = True
                yield lent
        except DatabaseUnavailableError as error:
            if begun or not _has_ended(lent, error):
                raise
        else:
            return
        with self.connection(timeout) as lent, lent.transaction():
            yield lent

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do repeatable work, such as reading; repeat it once if the server ends its connection."""
        lent: Connection | None = None
        try:
            with self.connection() as lent:
                return work(lent)
        except DatabaseUnavailableError as error:
            if not _has_ended(lent, error):
                raise
        with self.connection() as lent:
            return work(lent)

    @contextmanager
    def _lent(
        self, pool: ConnectionPool[Connection], timeout: float | None
    ) -> Iterator[Connection]:
        """Lend a connection that has not died while idle; a dead one is safely replaced."""
        connection = pool.getconn(timeout)
        for _ in range(REPLACED):
            if not has_died(connection):
                break
            borrowed_at = time.monotonic()
            connection.close()
            pool.putconn(connection)
            self._forget_idle_connections(pool, borrowed_at)
            connection = pool.getconn(timeout)
        try:
            with connection:
                yield connection
        finally:
            pool.putconn(connection)

    @contextmanager
    def listen_connection(self, *, statement_timeout: float | None = None) -> Iterator[Connection]:
        """Open a connection of its own, outside the pool, for LISTEN, long work or session locks.

        Its errors are mapped as those of `connection`; it is closed at the end.
        """
        limit = self._statement_timeout if statement_timeout is None else statement_timeout
        try:
            kind = self._sessions.kind(limit, self._note)
            connection = kind.connect(**self._sessions.parameters)
        except psycopg.Error as error:
            raise connect_failure(error, self._where) from error
        try:
            yield connection
        except psycopg.Error as error:
            if not is_unavailable(error):
                raise
            raise unavailable(error, self._where) from error
        finally:
            connection.close()

    async def connect_async(
        self, *, statement_timeout: float | None = None
    ) -> psycopg.AsyncConnection[TupleRow]:
        """Open a connection of its own, outside the pool, for an event loop; the caller closes it.

        Raises `DatabaseUnavailableError`.
        """
        limit = self._statement_timeout if statement_timeout is None else statement_timeout
        try:
            connection = await self._sessions.begin_async(limit)
        except DatabaseUnavailableError as error:
            self._note(error)
            raise
        self._note(None)
        return connection

    def _probe(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        delay = 0.1
        kind = self._sessions.kind(self._statement_timeout, lambda _: None)
        while True:
            try:
                with kind.connect(**self._sessions.parameters) as connection:
                    self._resolved = resolved(self._parameters, connection.pgconn)
            except psycopg.Error as error:
                failure = connect_failure(error, self._where)
                cause: Exception = error
            except DatabaseUnavailableError as error:
                failure = cause = error
            else:
                return
            left = deadline - time.monotonic()
            if failure.permanent or left <= 0:
                raise failure from cause
            time.sleep(min(left, delay * random.uniform(0.5, 1.0)))  # noqa: S311
            delay = min(2.0, delay * 2)

    def _forget_idle_connections(
        self, pool: ConnectionPool[Connection], borrowed_at: float
    ) -> None:
        """Replace the idle connections: where one has died, the others most likely have too.

        Only the first caller to notice does so, lest callers discard each other's new connections.
        """
        with self._guard:
            if borrowed_at < self._drained_at:
                return
            self._drained_at = time.monotonic()
        log.warning("lost a connection to %s; replacing all", self._where)
        pool.drain()

    def _note(self, failure: DatabaseUnavailableError | None) -> None:
        before, self._connect_failure = self._connect_failure, failure
        if failure is not None and str(failure) != str(before):
            log.warning("%s", failure)
        elif failure is None and before is not None:
            log.info("connected to %s again", self._where)


def _has_ended(lent: Connection | None, error: DatabaseUnavailableError) -> bool:
    """Tell whether the server ended a lent connection; the server itself may be up."""
    return lent is not None and lent.closed and not isinstance(error.__cause__, GivenUpError)


def _again(failure: DatabaseUnavailableError) -> DatabaseUnavailableError:
    """Copy a failure, to be raised in another thread."""
    return DatabaseUnavailableError(str(failure), permanent=failure.permanent)


def _parse(url: str) -> dict[str, Any]:
    # libpq's own message may quote the password: it is not passed on.
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:
        parameters = {}
    if not parameters:
        raise DatabaseUrlError(
            "database.url (DATABASE_URL) is no PostgreSQL URL; "
            "it looks like postgresql://user:password@host:5432/database"
        ) from None
    # A bare @ or / in the password moves a piece of the password into the host, the port or the
    # database's name, which error messages show.
    place_part = url.partition("://")[2].partition("?")[0]
    port = str(parameters.get("port") or "0").replace(",", "")
    if place_part.count("@") > 1 or "@" in place_part.partition("/")[2] or not port.isdecimal():
        raise DatabaseUrlError(
            "database.url (DATABASE_URL) is ambiguous; in user and password write "
            "@ as %40, / as %2F, : as %3A, # as %23"
        )
    ours = session.contradiction(str(parameters.get("options") or ""))
    if ours is not None:
        raise DatabaseUrlError(
            f"database.url (DATABASE_URL) asks for {ours} in its options, which is not to be "
            "chosen; leave it out (docs/postgresql.md says why)"
        )
    return dict(parameters)
