"""Queries on an event loop, without a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, TypeAlias

import psycopg
from psycopg import errors, pq

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import is_unavailable, unavailable
from tenantry.database.liveness import has_ended
from tenantry.database.pool import Database
from tenantry.turns.places import Places

CONNECTIONS: Final = 8
PATIENCE: Final = 5.0
"""Seconds a query waits for a connection."""

LONGEST: Final = 35.0
"""Seconds to wait for an answer: a live server cancels the statement before that."""

IDLE: Final = 60.0
"""Seconds after which an unused connection is closed."""

ENDED: Final = (errors.AdminShutdown, errors.CrashShutdown)
"""Errors with which a server ends a connection."""

Row: TypeAlias = list[bytes | None]

Parameter: TypeAlias = bytes | tuple[int, bytes] | None
"""A query's parameter: its text, or the oid of its type and its value in binary."""


class _LostError(Exception):
    """The connection is gone."""


class _GoneError(_LostError):
    """The connection was gone before the query was sent."""


class LoopQueries:
    """Runs queries over a few connections of its own, opened when they are needed.

    Clients take turns. The object belongs to the event loop that uses it first, and closes its
    connections when that loop cancels its tasks at the end. A query whose connection is gone is run
    again on a new one, unless it is to run `once`.
    """

    def __init__(
        self,
        database: Database,
        *,
        connections: int = CONNECTIONS,
        patience: float = PATIENCE,
        statement_timeout: float | None = None,
    ) -> None:
        """The server ends a query after `statement_timeout` seconds; None: the database's own.

        A caller that gives up earlier leaves the query to run until then.
        """
        self._database = database
        self._statement_timeout = statement_timeout
        self._patience = patience
        self._places = Places(connections, patience=patience)
        self._idle: list[_Link] = []
        self._keeper: asyncio.Task[None] | None = None

    async def row(
        self,
        query: bytes,
        parameters: Sequence[Parameter],
        client: str = "",
        *,
        once: bool = False,
    ) -> Row:
        """Give the first row of a query, its values in binary.

        `client` names whose turn the query takes, such as a tenant's. What writes is to run `once`.
        Raises `DatabaseUnavailableError`, after which such a query may have been run, and psycopg's
        error for a query that is refused.
        """
        waiting = True
        try:
            async with self._places.taken(client):
                waiting = False
                return await self._row(query, parameters, once=once)
        except TimeoutError as error:
            if not waiting:
                raise
            raise DatabaseUnavailableError(
                f"{self._database.where}: no connection was free for {self._patience:g} seconds"
            ) from error
        except (psycopg.Error, _LostError) as error:
            if isinstance(error, _LostError) or is_unavailable(error):
                raise unavailable(error, self._database.where) from error
            raise

    async def _row(self, query: bytes, parameters: Sequence[Parameter], *, once: bool) -> Row:
        while self._idle:
            link = self._idle.pop()
            with suppress(_GoneError if once else _LostError):
                return await self._ask(link, query, parameters)
        return await self._ask(await self._connect(), query, parameters)

    async def _ask(self, link: _Link, query: bytes, parameters: Sequence[Parameter]) -> Row:
        try:
            row = await link.row(query, parameters)
        except errors.OperationalError as error:
            # Cancelled, timed out, shutting down: in any case the next query gets a new connection.
            link.close()
            if isinstance(error, ENDED):
                raise _LostError(str(error)) from error
            raise
        except psycopg.Error:
            self._idle.append(link)
            raise
        except BaseException:  # given up in the middle of an answer
            link.close()
            raise
        self._idle.append(link)
        return row

    async def _connect(self) -> _Link:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())
        return _Link(await self._database.connect_async(statement_timeout=self._statement_timeout))

    async def _keep(self) -> None:
        """Close connections that have been idle for long, and at the loop's end all."""
        try:
            while True:
                await asyncio.sleep(IDLE / 2)
                since = time.monotonic() - IDLE
                for link in [link for link in self._idle if link.used_at < since]:
                    self._idle.remove(link)
                    link.close()
        finally:
            while self._idle:
                self._idle.pop().close()


class _Link:
    """A connection and its socket's events; one query at a time."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self._connection = connection  # kept: its socket is closed once it is garbage-collected
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._socket = self._pg.socket
        self._answer: asyncio.Future[Row] | None = None
        self._results: list[pq.abc.PGresult] = []
        self._closed = False
        self.used_at = time.monotonic()
        # Registered once: registering for each answer would cost two more system calls a query.
        self._loop.add_reader(self._socket, self._readable)

    async def row(self, query: bytes, parameters: Sequence[Parameter]) -> Row:
        """Run a query and give its first row."""
        if self._connection.closed or has_ended(self._pg):
            self.close()
            raise _GoneError("the connection was closed")
        self._results = []
        self._answer = self._loop.create_future()
        try:
            self._pg.send_query_params(
                query,
                [one[1] if isinstance(one, tuple) else one for one in parameters],
                param_types=[one[0] if isinstance(one, tuple) else 0 for one in parameters],
                param_formats=[isinstance(one, tuple) for one in parameters],
                result_format=pq.Format.BINARY,
            )
            self._flush()
        except psycopg.Error as error:
            self.close()
            raise _LostError(str(error)) from error
        try:
            async with asyncio.timeout(LONGEST):
                return await self._answer
        except TimeoutError:
            # Not lost: another connection would not fare better.
            raise errors.OperationalError(f"no answer for {LONGEST:g} seconds") from None
        finally:
            self._answer = None
            self.used_at = time.monotonic()

    def close(self) -> None:
        """Close the connection; harmless twice."""
        if self._closed:
            return
        self._closed = True
        # Needed even where libpq has closed the socket of a broken connection by itself: the loop
        # would take the next socket with that number (a client's, say) for this one.
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._pg.finish()

    def _flush(self) -> None:
        """Send what the socket takes now, and the rest as soon as it is writable."""
        if self._pg.flush():
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._lost(error)

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            while not self._pg.is_busy():
                result = self._pg.get_result()
                if result is None:
                    self._finish()
                    return
                self._results.append(result)
        except psycopg.Error as error:
            self._lost(error)

    def _finish(self) -> None:
        if self._pg.status != pq.ConnStatus.OK:
            self._lost(_LostError("the server closed the connection"))
        elif self._answer is not None and not self._answer.done() and self._results:
            result = self._results[-1]
            if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples:
                row = [result.get_value(0, column) for column in range(result.nfields)]
                self._answer.set_result(row)
            else:
                self._answer.set_exception(errors.error_from_result(result))

    def _lost(self, error: Exception) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            lost = _LostError(str(error))
            lost.__cause__ = error
            self._answer.set_exception(lost)
