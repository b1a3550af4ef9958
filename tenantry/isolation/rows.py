"""What a tenant's role for reading with SQL can reach in the database; each attempt is undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from psycopg import sql

from tenantry.domain import names
from tenantry.isolation.checks import Action, Check, Notes
from tenantry.isolation.hostile_sql import FORBIDDEN
from tenantry.tenant_client.access import TenantNames
from tenantry.tenant_client.amqp import AttemptResult
from tenantry.tenant_client.sql import SqlClient

TABLE: Final = "public.messages"
VIEW: Final = "messages"
"""In the role's own schema, where its search path leads."""

_OWN: Final[tuple[tuple[Action, str, str], ...]] = (
    ("write", f"{VIEW} (its own rows)", "DELETE FROM messages"),
    ("configure", "its own schema", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
)
"""What a role that reads must not, beside what none may: action, target, statement."""


def examine(link: SqlClient, mine: TenantNames, others: Sequence[TenantNames]) -> Iterator[Check]:
    """Try everything with a role of a tenant's."""
    # A role begins read-only, which would answer before the right does.
    link.attempt("SELECT 1")
    link.lift_defaults()
    notes = Notes(mine, mine)
    notes.note("read", VIEW, link.attempt("SELECT FROM messages LIMIT 1"))
    for action, target, statement in (*_OWN, *FORBIDDEN):
        notes.note(action, target, link.attempt(statement), forbidden=True)
    yield from notes.checks
    for other in others:
        yield from _foreign(link, mine, other)


def _foreign(link: SqlClient, mine: TenantNames, other: TenantNames) -> list[Check]:
    notes = Notes(mine, other)
    seen = link.sees("SELECT FROM public.messages WHERE tenant_id = %s LIMIT 1", other.tenant_id)
    notes.note("read", TABLE, AttemptResult.ALLOWED if seen else AttemptResult.REFUSED)
    leaf = names.partition_table_name(other.tenant_id)
    partition = sql.Identifier("tenantry", leaf)
    notes.note(
        "read",
        f"tenantry.{leaf}",
        link.attempt(sql.SQL("SELECT FROM {} LIMIT 1").format(partition)),
    )
    insert = sql.SQL(
        "INSERT INTO {} (tenant_id, id, position, topic, partition, body, created_at)"
        " VALUES ({}, 'isolation-probe', -1, '', 0, '', now())"
    )
    for table, shown in ((sql.Identifier("public", "messages"), TABLE), (partition, leaf)):
        statement = insert.format(table, sql.Literal(other.tenant_id))
        notes.note("write", shown, link.attempt(statement))
    user = sql.Identifier(names.username(other.tenant_id))
    become = sql.SQL("SET ROLE {}").format(user)
    notes.note(
        "read", f"{TABLE} (as its user)", link.attempt(become, missing=AttemptResult.REFUSED)
    )
    return notes.checks
