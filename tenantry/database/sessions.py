"""Opens sessions with all settings pinned, on a server that is fit for the daemon."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.rows import TupleRow

from tenantry.database import session
from tenantry.database.conninfo import Hosts, Place, place_of
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import connect_failure, options_refused, place
from tenantry.database.liveness import MARGIN, PROBE_TIMEOUT, Silence, bounded

Connection: TypeAlias = psycopg.Connection[TupleRow]

LOCK_TIMEOUT: Final = 10.0

SETTLE_TIMEOUT: Final = 10.0
"""Seconds for a new connection's first answer: a pooler accepts clients it can't serve yet."""

CROWDED_FOR: Final = 30.0
"""Seconds without another check whether a pooler keeps sessions apart, after it had no connection
for the second session that the check needs."""

EACH: Final = 3.0
"""Seconds each of several hosts has to accept a connection: the later hosts wait for it."""

MOST_PLACES: Final = 64
"""Most addresses remembered: a host name's address may change every day."""


class Sessions:
    """Opens sessions by the parameters of database.url. Safe to use from any thread.

    All settings that matter are set twice: as the session's `options`, so that RESET comes back to
    them, and by statements, as poolers drop or refuse `options`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        limits: Mapping[str, float],
        connect_timeout: float,
        term: str,
        read_only: bool,
        lends_path: bool,
    ) -> None:
        """`limits` are settings in seconds; see `Database` for the rest."""
        self._parameters = parameters
        self._asked_options: Final[str] = parameters.get("options") or ""
        self._limits = {name: str(int(value * 1000)) for name, value in limits.items()}
        self._hosts = Hosts(parameters)
        longest = EACH if self._hosts.several else math.inf
        self._connect_timeout = min(connect_timeout, longest)
        self._term = term
        self._read_only = read_only
        self._lends_path = lends_path
        self._where = place(parameters)
        self._options_refused = False
        self._crowded_until = 0.0
        self._guard = threading.Lock()
        self._silences: dict[Place, Silence] = {}

    @property
    def parameters(self) -> dict[str, Any]:
        """The libpq parameters of a connection, except its `options`."""
        return {
            "application_name": "tenantry",
            "connect_timeout": max(2, round(self._connect_timeout)),
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            **self._parameters,
            **self._hosts.parameters(),
            "client_encoding": "UTF8",
            "autocommit": True,
        }

    def kind(
        self, statement_timeout: float, note: Callable[[DatabaseUnavailableError | None], None]
    ) -> type[Connection]:
        """Make a connection class that pins all settings and gives up a silent server.

        Its `connect` raises `psycopg.Error`, and `DatabaseUnfitError` for a server that accepts the
        connection but is unfit. It passes the failure, or None on success, to `note`.
        """
        sessions = self
        usual = self._longest(statement_timeout)

        class Attentive(psycopg.Connection[TupleRow]):
            longest: float | None = SETTLE_TIMEOUT
            pins: bytes = b""
            """The statements that pin the settings again, after RESET ALL say."""

            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                try:
                    connection = cls.begin(*args, **kwargs)
                except psycopg.Error as error:
                    note(connect_failure(error, sessions._where))
                    raise
                except DatabaseUnavailableError as error:
                    note(error)
                    raise
                note(None)
                return connection

            @classmethod
            def begin(cls, *args: Any, **kwargs: Any) -> Any:
                changes = sessions._hosts.changes
                connection = cls.enter(*args, **kwargs)
                try:
                    mark = secrets.token_hex(8)
                    version = connection.info.server_version
                    connection.pins = sessions._pins(statement_timeout, version, mark)
                    connection.execute(connection.pins)
                    row = connection.execute(session.LOOK.encode()).fetchone()
                    sessions._judge(version, row, mark)
                    if row[0] != connection.info.backend_pid:
                        # The pid is not the server's: there is a pooler in between.
                        sessions._confirm(connection, mark, lambda: cls.enter(*args, **kwargs))
                    connection.longest = usual
                    latest = sessions._hosts.prefer(place_of(connection.pgconn), changes)
                except BaseException:
                    connection.close()
                    raise
                if latest:
                    return connection
                connection.close()
                return cls.begin(*args, **kwargs)

            @classmethod
            def enter(cls, *args: Any, **kwargs: Any) -> Any:
                while True:
                    # The pool keeps its first parameters; these may have changed since.
                    now = {
                        **sessions._hosts.parameters(),
                        "options": sessions._options(statement_timeout),
                    }
                    try:
                        return super().connect(*args, **{**kwargs, **now})
                    except psycopg.OperationalError as error:
                        if not sessions._give_options_up(error):
                            raise

            def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
                steps = bounded(
                    gen,
                    silent=lambda: sessions._silence_of(place_of(self.pgconn)).found(),
                    longest=self.longest,
                    give_up=self.pgconn.finish,
                )
                return super().wait(steps, *args, **kwargs)

        return Attentive

    async def begin_async(self, statement_timeout: float) -> psycopg.AsyncConnection[TupleRow]:
        """Open a session for an event loop. Raises `DatabaseUnavailableError`."""
        mark, changes = secrets.token_hex(8), self._hosts.changes
        try:
            connection = await self._enter_async(statement_timeout)
            try:
                version = connection.info.server_version
                async with asyncio.timeout(SETTLE_TIMEOUT):
                    await connection.execute(self._pins(statement_timeout, version, mark))
                    row = await (await connection.execute(session.LOOK.encode())).fetchone()
                self._judge(version, row, mark)
                latest = self._hosts.prefer(place_of(connection.pgconn), changes)
            except BaseException:
                connection.pgconn.finish()
                raise
        except TimeoutError:
            raise DatabaseUnavailableError(
                f"can't connect to {self._where}: no answer in time; is there a pooler with too "
                "few connections?"
            ) from None
        except psycopg.Error as error:
            raise connect_failure(error, self._where) from error
        if latest:
            return connection
        connection.pgconn.finish()
        return await self.begin_async(statement_timeout)

    async def _enter_async(self, statement_timeout: float) -> psycopg.AsyncConnection[TupleRow]:
        while True:
            parameters = {**self.parameters, "options": self._options(statement_timeout)}
            try:
                return await psycopg.AsyncConnection.connect(**parameters)
            except psycopg.OperationalError as error:
                if not self._give_options_up(error):
                    raise

    def _give_options_up(self, error: Exception) -> bool:
        """Tell whether to try again without the daemon's `options`."""
        if self._options_refused or not options_refused(error):
            return False
        self._options_refused = True
        return True

    def _settings(self, statement_timeout: float) -> dict[str, str]:
        """Return the settings of the daemon's sessions, by name."""
        limits = {**self._limits, "statement_timeout": str(int(statement_timeout * 1000))}
        ours = session.pins(limits, self._asked_options, read_only=self._read_only)
        return ours | ({"tenantry.term": self._term} if self._term else {})

    def _options(self, statement_timeout: float) -> str:
        """Return a session's startup `options`: those of database.url, then the daemon's.

        The environment's `options` do not apply.
        """
        ours = {} if self._options_refused else self._settings(statement_timeout)
        if self._lends_path:
            ours.pop("search_path", None)  # users' code gets the database's own as its default
        return f"{self._asked_options} {session.as_options(ours)}".strip()

    def _pins(self, statement_timeout: float, server_version: int, mark: str) -> bytes:
        settings = self._settings(statement_timeout) | {session.MARK: mark}
        return session.as_statements(settings, self._asked_options, server_version=server_version)

    def _longest(self, statement_timeout: float) -> float | None:
        """Return the seconds after which no answer will come; None where that is unknown."""
        asked = session.asked_for(self._asked_options)
        if not statement_timeout or "statement_timeout" in asked:
            return None
        return statement_timeout + MARGIN

    def _judge(self, server_version: int, row: Any, mark: str) -> None:
        unfit = session.too_old(server_version) or session.judge(
            row, mark=mark, read_only=self._read_only
        )
        if unfit is not None:
            raise unfit.of(self._where)

    def _confirm(self, connection: Connection, mark: str, enter: Callable[[], Connection]) -> None:
        """Check whether the pooler before the server keeps sessions apart.

        Another session is opened and served in between. Where the pooler has no server connection
        for it, the question stays open until the next session begins.
        """
        if time.monotonic() > self._crowded_until:
            try:
                with closing(enter()) as other:
                    other.execute(f"SET {session.MARK} = 'another'".encode())
            except psycopg.Error:
                self._crowded_until = time.monotonic() + CROWDED_FOR
        for _ in range(3):
            row = connection.execute(session.READ_MARK.encode()).fetchone()
            if row is None or row[0] != mark:
                raise session.pooled_by_transaction().of(self._where)

    def _silence_of(self, place: Place) -> Silence:
        """Return the silence probe of the server at a place: each server has its own."""
        with self._guard:
            if place not in self._silences and len(self._silences) >= MOST_PLACES:
                self._silences.clear()
            return self._silences.setdefault(place, Silence(lambda: self._knock(place)))

    def _knock(self, place: Place) -> Connection:
        ours = {"connect_timeout": PROBE_TIMEOUT, "options": self._options(0)}
        return psycopg.connect(**{**self.parameters, **place.parameters(), **ours})
