"""Which of psycopg's errors mean that the database is away, and how to say so in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Final

import psycopg
from psycopg import errors as pg

from tenantry.database.errors import DatabaseUnavailableError, TermOverError
from tenantry.unavailable import UnavailableError

ITS_OWN_FAULT: Final = (
    pg.ProgramLimitExceeded,
    pg.StatementTooComplex,
    pg.TooManyColumns,
    pg.TooManyArguments,
    pg.ObjectNotInPrerequisiteState,
)
"""Operational errors by class, but the statement's own fault: repeating it can't help."""

AWAY: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.ReadOnlySqlTransaction,  # a primary that has become a standby
    pg.IdleInTransactionSessionTimeout,
)

LOST_STATE: Final = (pg.DuplicatePreparedStatement, pg.InvalidSqlStatementName)
"""Errors for prepared statements that are missing, or belong to another session."""

UNFIT: Final = (
    pg.InsufficientPrivilege,
    pg.InvalidTransactionState,
    pg.InvalidSchemaName,
    pg.UndefinedFunction,
    pg.UndefinedObject,
)
"""Errors that occur where the database or the rights in it have been changed, whatever the data.

No tenant is at fault then, and a restart does not help: the work waits, and the error is reported.
"""

LONGEST_TEXT: Final = 500

TERM_OVER: Final = "TN001"
"""The SQLSTATE that `tenantry.check_term` raises for a session whose term another daemon holds."""


def is_unavailable(error: BaseException) -> bool:
    """Tell whether `error` means that the same work may succeed later, here or elsewhere."""
    if _is_term_over(error) or lost_its_state(error):
        return True
    if isinstance(error, ITS_OWN_FAULT):
        return _is_full_of_notifications(error)
    return isinstance(error, AWAY)


def lost_its_state(error: BaseException) -> bool:
    """Tell whether a session has lost its prepared statements: it is another session now."""
    return isinstance(error, LOST_STATE)


def options_refused(error: BaseException) -> bool:
    """Tell whether a pooler refused the `options` at the start of a session."""
    text = str(error).lower()
    return "startup parameter" in text or "command-line options" in text


def _is_full_of_notifications(error: BaseException) -> bool:
    """Tell whether a commit with a NOTIFY failed because the server's queue is full."""
    # The message is in the server's language; the source file's name is not.
    return isinstance(error, psycopg.Error) and (error.diag.source_file or "").endswith("async.c")


def _is_term_over(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate == TERM_OVER


class PortErrors:
    """A `with` block that turns the database's errors into those of the port it serves.

    An outage becomes `unavailable`, and so does an error of the classes `waited_for`. Any other
    psycopg error becomes `failed`, unless `otherwise` returns another exception for it. `where`
    begins the message. An object may be reused, and by several threads.
    """

    def __init__(
        self,
        unavailable: type[UnavailableError],
        failed: type[Exception],
        *,
        where: str = "",
        waited_for: tuple[type[psycopg.Error], ...] = (),
        otherwise: Callable[[psycopg.Error], Exception | None] = lambda _: None,
    ) -> None:
        self._unavailable = unavailable
        self._failed = failed
        self._prefix = f"{where}: " if where else ""
        self._waited_for = waited_for
        self._otherwise = otherwise

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, DatabaseUnavailableError):
            raise self._unavailable(str(error)) from error
        if isinstance(error, psycopg.Error):
            raise self._of(error) from error

    def _of(self, error: psycopg.Error) -> Exception:
        if (other := self._otherwise(error)) is not None:
            return other
        away = isinstance(error, self._waited_for) or is_unavailable(error)
        kind = self._unavailable if away else self._failed
        return kind(f"{self._prefix}{one_line(error)}")


def place(parameters: Mapping[str, object]) -> str:
    """Name a database for people, from its connection parameters: never the password."""
    host = str(parameters.get("host") or os.environ.get("PGHOST") or "the local socket")
    port = str(parameters.get("port") or os.environ.get("PGPORT") or "5432")
    name = str(parameters.get("dbname") or os.environ.get("PGDATABASE") or "")
    hosts, ports = host.split(","), port.split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    where = ", ".join(
        one if one.startswith(("/", "the ")) else f"{one}:{its}"
        for one, its in zip(hosts, ports, strict=True)
    )
    return f"PostgreSQL at {where}" + (f', database "{name}"' if name else "")


def unavailable(error: BaseException, where: str) -> DatabaseUnavailableError:
    """Return the error for a statement or a wait for a connection that failed."""
    kind = TermOverError if _is_term_over(error) else DatabaseUnavailableError
    return kind(f"{where}: {one_line(error)}")


_START: Final = "start the server or correct database.url (DATABASE_URL)"

_CAUSES: Final[tuple[tuple[str, str, str, bool], ...]] = (
    ("password authentication failed|no password supplied", "the password or user was refused",
     "check user and password in database.url (DATABASE_URL)", True),
    ('database "[^"]*" does not exist', "there is no such database",
     "create it (createdb) or correct database.url (DATABASE_URL)", True),
    ('role "[^"]*" does not exist', "there is no such user",
     "create the user or correct database.url (DATABASE_URL)", True),
    (r"pg_hba\.conf", "", "let this machine in, in the server's pg_hba.conf", True),
    ("certificate.*does not match host name", "",
     "database.url must name the server as its certificate does", True),
    ("certificate.*expired", "", "give the server a new certificate", True),
    ("certificate|ssl error", "",
     ("sslrootcert in database.url must name the file of the authority that signed the server's "
      "certificate"), True),
    ("starting up|shutting down|recovery mode", "", "wait a moment", False),
    ("too many connections for role", "",
     "raise the user's limit: ALTER ROLE ... CONNECTION LIMIT", False),
    ("too many connections for database", "",
     "raise its limit: ALTER DATABASE ... CONNECTION LIMIT", False),
    ("connection slots|too many clients", "",
     "raise the server's max_connections, or end what uses them", False),
    ("no more connections allowed|query_wait_timeout", "",
     "raise the pooler's max_client_conn and default_pool_size", False),
    ("connection refused", "connection refused", _START, False),
    ("no such file or directory", "no server listens there", _START, False),
    ("timeout expired|timed out", "no answer in time", _START, False),
    ("could not translate host name|name or service not known|failed to resolve host",
     "the host name is unknown", _START, False),
    ("no route to host", "no route to the host", _START, False),
    ("network is unreachable", "the network is unreachable", _START, False),
    ("", "", _START, False),
)  # fmt: skip
"""Per cause: a pattern of the server's or system's message, in lower case; plain words for it,
where its own are not plain; the remedy; and whether waiting is in vain."""


def connect_failure(error: BaseException, where: str) -> DatabaseUnavailableError:
    """Return the error that says why no connection could be made, and the remedy."""
    text = one_line(error)
    lower = text.lower()
    _, plain, remedy, permanent = next(one for one in _CAUSES if re.search(one[0], lower))
    return DatabaseUnavailableError(
        f"can't connect to {where}: {plain or text}; {remedy}", permanent=permanent
    )


def one_line(error: BaseException) -> str:
    """Return an error's text on one line of bounded length, without its place in the SQL."""
    text = str(error)
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        text = ": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
