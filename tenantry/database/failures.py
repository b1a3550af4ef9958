"""Which of psycopg's errors mean that the database is away, and how to say so in one line."""

from __future__ import annotations

import os
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
"""Operational errors by class, but of the statement's making: repeating it can't help."""

AWAY: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    pg.ReadOnlySqlTransaction,  # a primary that has become a standby
    pg.IdleInTransactionSessionTimeout,
)

LOST_STATE: Final = (pg.DuplicatePreparedStatement, pg.InvalidSqlStatementName)
"""What a server says of prepared statements that are not there, or another's."""

UNFIT: Final = (
    pg.InsufficientPrivilege,
    pg.InvalidTransactionState,
    pg.InvalidSchemaName,
    pg.UndefinedFunction,
    pg.UndefinedObject,
)
"""What it says where the database or the rights in it have been changed, whatever the data is.

Nothing of one tenant's is at fault then, and to begin anew is no help: it is waited for, and told.
"""

LONGEST_TEXT: Final = 500

TERM_OVER: Final = "TN001"
"""What `tenantry.check_term` says to a session whose term is another's."""


def is_unavailable(error: BaseException) -> bool:
    """Tell whether `error` means that the same work may succeed later, here or elsewhere."""
    if _is_term_over(error) or lost_its_state(error):
        return True
    return isinstance(error, AWAY) and not isinstance(error, ITS_OWN_FAULT)


def lost_its_state(error: BaseException) -> bool:
    """Tell whether a session has lost what it had prepared: it is not the one that it was."""
    return isinstance(error, LOST_STATE)


def options_refused(error: BaseException) -> bool:
    """Tell whether a pooler wants no `options` at the start of a session."""
    text = str(error).lower()
    return "startup parameter" in text or "command-line options" in text


def _is_term_over(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate == TERM_OVER


class PortErrors:
    """A `with` block whose errors of the database are raised as those of the port it serves.

    An outage becomes `unavailable`, and so does an error of the classes `waited_for`; any other of
    psycopg's becomes `failed`, unless `otherwise` gives another for it. `where` begins the message.
    One object may be used again, and by several threads.
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
    where = host if host.startswith(("/", "the ")) else f"{host}:{port}"
    return f"PostgreSQL at {where}" + (f', database "{name}"' if name else "")


def unavailable(error: BaseException, where: str) -> DatabaseUnavailableError:
    """Say that a statement or a wait for a connection failed."""
    kind = TermOverError if _is_term_over(error) else DatabaseUnavailableError
    return kind(f"{where}: {one_line(error)}")


def connect_failure(error: BaseException, where: str) -> DatabaseUnavailableError:
    """Say why no connection could be made, and what to do about it."""
    text = one_line(error)
    lower = text.lower()
    if "password authentication failed" in lower or "no password supplied" in lower:
        remedy, permanent = "check user and password in database.url (DATABASE_URL)", True
        text = "the password or user was refused"
    elif "database" in lower and "does not exist" in lower:
        remedy, permanent = "create it (createdb) or correct database.url (DATABASE_URL)", True
        text = "there is no such database"
    elif "role" in lower and "does not exist" in lower:
        remedy, permanent = "create the user or correct database.url (DATABASE_URL)", True
        text = "there is no such user"
    elif "pg_hba.conf" in lower:
        remedy, permanent = "let this machine in, in the server's pg_hba.conf", True
    elif "certificate" in lower or "ssl error" in lower:
        remedy, permanent = _tls_remedy(lower), True
    elif "starting up" in lower or "shutting down" in lower or "recovery mode" in lower:
        remedy, permanent = "wait a moment", False
    elif "too many connections for role" in lower:
        remedy, permanent = "raise the user's limit: ALTER ROLE ... CONNECTION LIMIT", False
    elif "too many connections for database" in lower:
        remedy, permanent = "raise its limit: ALTER DATABASE ... CONNECTION LIMIT", False
    elif any(sign in lower for sign in ("connection slots", "too many clients")):
        remedy, permanent = "raise the server's max_connections, or end what uses them", False
    elif "no more connections allowed" in lower or "query_wait_timeout" in lower:
        remedy, permanent = "raise the pooler's max_client_conn and default_pool_size", False
    else:
        remedy, permanent = "start the server or correct database.url (DATABASE_URL)", False
        text = _plain_reason(lower) or text
    return DatabaseUnavailableError(
        f"can't connect to {where}: {text}; {remedy}", permanent=permanent
    )


def _tls_remedy(lower: str) -> str:
    if "does not match host name" in lower:
        return "database.url must name the server as its certificate does"
    if "expired" in lower:
        return "give the server a new certificate"
    return (
        "sslrootcert in database.url must name the file of the authority that signed the server's "
        "certificate"
    )


def one_line(error: BaseException) -> str:
    """Give an error's text on one line of bounded length: what and why, not where in our SQL."""
    text = str(error)
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        text = ": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def _plain_reason(lower: str) -> str | None:
    for sign, reason in (
        ("connection refused", "connection refused"),
        ("no such file or directory", "no server listens there"),
        ("timeout expired", "no answer in time"),
        ("timed out", "no answer in time"),
        ("could not translate host name", "the host name is unknown"),
        ("name or service not known", "the host name is unknown"),
        ("failed to resolve host", "the host name is unknown"),
        ("no route to host", "no route to the host"),
        ("network is unreachable", "the network is unreachable"),
    ):
        if sign in lower:
            return reason
    return None
