"""Terms in PostgreSQL, in the database they guard: a write and its check are one transaction."""

from __future__ import annotations

from datetime import UTC
from typing import Final

from psycopg.rows import TupleRow

from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.sql import queries
from tenantry.terms.port import DAEMON, Holder, Standing
from tenantry.unavailable import UnavailableError

PATIENCE: Final = 2.0
"""Seconds to wait for a connection."""


class PostgresTerms:
    """The terms of one scope (`tenantry.terms.port.Terms`) in `tenantry.terms`.

    A session of `Database` whose `term` is `claim(number)` writes only as long as that is the
    term's number: a trigger on every table checks it (migrations 0006 and 0029). A scope with a
    `slot` has a fence of its own there.
    """

    def __init__(self, database: Database, scope: str = DAEMON, *, slot: int | None = None) -> None:
        self._slot = slot
        self._database = database
        self._errors = PortErrors(UnavailableError, UnavailableError, where=database.where)
        self._scope = scope
        self._sql = queries("terms")

    def claim(self, number: int) -> str:
        """Return the value of `term` for sessions that write under the term."""
        return f"{self._scope}/{number}" + ("" if self._slot is None else f"/{self._slot}")

    def look(self) -> Standing:
        """See `Terms.look`."""
        with self._errors, self._database.connection(PATIENCE) as connection:
            row = connection.execute(self._sql["look"], {"scope": self._scope}).fetchone()
        if row is None:
            raise UnavailableError(f"{self._database.where}: no scope {self._scope!r}")
        return _standing(row)

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        """See `Terms.take`."""
        parameters = {
            "scope": self._scope,
            "number": seen.number,
            "beat": seen.beat,
            "instance": by.instance,
            "host": by.host,
            "pid": by.pid,
        }
        with self._errors, self._database.connection(PATIENCE) as connection:
            row = connection.execute(self._sql["take"], parameters).fetchone()
        return None if row is None else _standing(row)

    def renew(self, number: int) -> bool:
        """See `Terms.renew`."""
        return self._change("renew", number) == 1

    def release(self, number: int) -> None:
        """See `Terms.release`."""
        self._change("release", number)

    def _change(self, query: str, number: int) -> int:
        with self._errors, self._database.connection(PATIENCE) as connection:
            done = connection.execute(self._sql[query], {"scope": self._scope, "number": number})
            return done.rowcount


def _standing(row: TupleRow) -> Standing:
    number, beat, held, instance, host, pid, since = row
    return Standing(
        number=number,
        beat=beat,
        held=held,
        holder=Holder(instance=instance, host=host, pid=pid),
        since=since.astimezone(UTC),
    )
