"""What a tenant's role for reading with SQL can reach in the database; each attempt is undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from psycopg import sql

from tenantry.domain import names
from tenantry.producer.access import TenantNames
from tenantry.producer.checks import Action, Check, Notes
from tenantry.producer.link import Verdict
from tenantry.producer.sql_link import SqlLink

TABLE: Final = "public.messages"
VIEW: Final = "messages"
"""In the role's own schema, where its search path leads."""

_OWN: Final[tuple[tuple[Action, str, str], ...]] = (
    ("read", "tenantry.events", "SELECT FROM tenantry.events LIMIT 1"),
    ("read", "tenantry.credentials", "SELECT FROM tenantry.credentials LIMIT 1"),
    ("read", "tenantry.dead_letters", "SELECT FROM tenantry.dead_letters LIMIT 1"),
    ("read", TABLE, "SELECT FROM public.messages LIMIT 1"),
    ("read", "pg_statistic", "SELECT FROM pg_catalog.pg_statistic LIMIT 1"),
    ("read", f"{TABLE} (without row security)",
     "SET LOCAL row_security = off; SELECT FROM public.messages LIMIT 1"),
    ("write", f"{TABLE} (its own rows)", "DELETE FROM public.messages"),
    ("configure", f"{TABLE} (its row security)",
     "ALTER TABLE public.messages DISABLE ROW LEVEL SECURITY"),
    ("write", f"{VIEW} (its own rows)", "DELETE FROM messages"),
    ("configure", "its own schema", "CREATE FUNCTION f() RETURNS int RETURN 1"),
    ("configure", "the schema public", "CREATE TABLE public.isolation_probe ()"),
    ("configure", "the schema tenantry", "CREATE TABLE tenantry.isolation_probe ()"),
    ("read", "the server's files", "SELECT pg_read_file('PG_VERSION')"),
    ("configure", "the server's programs", "COPY (SELECT 1) TO PROGRAM 'true'"),
    ("read", "pg_authid", "SELECT FROM pg_catalog.pg_authid LIMIT 1"),
)  # fmt: skip
"""What a role must not, on its own or the daemon's behalf: action, target, statement."""


def examine(link: SqlLink, mine: TenantNames, others: Sequence[TenantNames]) -> Iterator[Check]:
    """Try everything with a role of a tenant's."""
    # A role begins read-only, which would answer before the right does.
    link.attempt("SELECT 1")
    link.lift_defaults()
    notes = Notes(mine, mine)
    notes.note("read", VIEW, link.attempt("SELECT FROM messages LIMIT 1"))
    for action, target, statement in _OWN:
        notes.note(action, target, link.attempt(statement), forbidden=True)
    yield from notes.checks
    for other in others:
        yield from _foreign(link, mine, other)


def _foreign(link: SqlLink, mine: TenantNames, other: TenantNames) -> list[Check]:
    notes = Notes(mine, other)
    seen = link.sees("SELECT FROM public.messages WHERE tenant_id = %s LIMIT 1", other.tenant_id)
    notes.note("read", TABLE, Verdict.ALLOWED if seen else Verdict.REFUSED)
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
    notes.note("read", f"{TABLE} (as its user)", link.attempt(become, missing=Verdict.REFUSED))
    return notes.checks
