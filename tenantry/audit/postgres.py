"""Tenants' books in PostgreSQL: counts and rows in one snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg import errors, sql
from psycopg.rows import dict_row

from tenantry.audit.balance import Account
from tenantry.audit.port import CountingTookTooLongError
from tenantry.database.failures import PortErrors
from tenantry.domain import names
from tenantry.messages.port import MessageStoreError, StoreUnavailableError
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class PostgresAccounts:
    """Reads `tenantry.tenant_counters`, the partition and the list of dead letters (`Accounts`).

    Rows and counts are committed together, so they agree in every snapshot. Rows are counted on a
    separate connection: counting may take long, and the pool is for storing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._query = queries("audit")["account"]

    def read(self, tenant_id: str, *, seconds: float | None = None) -> Account | None:
        """See `Accounts.read`."""
        with self._errors:
            if seconds is None:
                with self._database.connection() as connection:
                    return self._read(connection, tenant_id)
            with (
                self._database.listen_connection(statement_timeout=seconds) as connection,
                connection.transaction(),
            ):
                connection.execute(_SNAPSHOT)
                try:
                    return self._counted(connection, tenant_id)
                except errors.QueryCanceled:
                    raise CountingTookTooLongError(
                        f"the rows of tenant {tenant_id} were not counted within {seconds:g} s"
                    ) from None

    def _read(self, connection: Connection, tenant_id: str) -> Account | None:
        with connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(self._query, {"tenant": tenant_id}).fetchone()
        return None if row is None else Account(tenant_id=tenant_id, **row)

    def _counted(self, connection: Connection, tenant_id: str) -> Account | None:
        account = self._read(connection, tenant_id)
        if account is None:
            return None
        partition = sql.Identifier("tenantry", names.partition_table_name(tenant_id))
        there = connection.execute("SELECT to_regclass(%s)", (partition.as_string(),)).fetchone()
        if there is None or there[0] is None:
            return replace(account, rows=0, newest=0)
        query = sql.SQL("SELECT count(*), coalesce(max(position), 0) FROM {}").format(partition)
        counted = connection.execute(query).fetchone()
        rows, newest = counted or (0, 0)
        return replace(account, rows=rows, newest=newest)
