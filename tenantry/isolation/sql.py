"""What a tenant's roles can reach in PostgreSQL, where each attempt is rolled back.

Each of a tenant's roles has its attempts: publishing, consuming and reading rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from psycopg import sql

from tenantry.broker.port import TenantTopology
from tenantry.domain import names
from tenantry.isolation.port import Action, Check, Findings
from tenantry.tenant_client.amqp import AttemptResult
from tenantry.tenant_client.sql import SqlClient

_PUBLISH: Final = "SELECT tenantry.publish_bytes('default', '', 'text/plain', tenant => %s)"
_MESSAGE: Final = """
ARRAY['default'], ARRAY['probe'], ARRAY[''::bytea], ARRAY['text/plain'], ARRAY[NULL::jsonb],
ARRAY[0::bigint]
"""
_PUBLISH_MANY: Final = f"SELECT tenantry.publish_many({_MESSAGE}, tenant => %s)"
_ENQUEUE: Final = f"SELECT tenantry.enqueue(%s, {_MESSAGE})"
_TAKE: Final = "SELECT tenantry.take(%s, ARRAY['default'], ARRAY[0], ARRAY[0::bigint])"
_DELETE: Final = """
DELETE FROM tenantry.queued
WHERE queue IN (SELECT id FROM tenantry.queues WHERE tenant_id = %s)
"""

FORBIDDEN: Final[tuple[tuple[Action, str, str], ...]] = (
    ("read", "public.messages", "SELECT FROM public.messages LIMIT 1"),
    ("read", "public.messages (without row security)",
     "SET LOCAL row_security = off; SELECT FROM public.messages LIMIT 1"),
    ("write", "public.messages", "DELETE FROM public.messages WHERE false"),
    ("configure", "public.messages (its row security)",
     "ALTER TABLE public.messages DISABLE ROW LEVEL SECURITY"),
    ("read", "tenantry.events", "SELECT FROM tenantry.events LIMIT 1"),
    ("read", "tenantry.credentials", "SELECT FROM tenantry.credentials LIMIT 1"),
    ("read", "tenantry.dead_letters", "SELECT FROM tenantry.dead_letters LIMIT 1"),
    ("read", "pg_statistic", "SELECT FROM pg_catalog.pg_statistic LIMIT 1"),
    ("read", "pg_authid", "SELECT FROM pg_catalog.pg_authid LIMIT 1"),
    ("read", "files of the server", "SELECT pg_catalog.pg_read_file('PG_VERSION')"),
    ("configure", "programs of the server", "COPY (SELECT 1) TO PROGRAM 'true'"),
    ("configure", "the schema public", "CREATE TABLE public.isolation_probe ()"),
    ("configure", "the schema tenantry", "CREATE TABLE tenantry.isolation_probe ()"),
    ("configure", "the database's schemas", "CREATE SCHEMA isolation_probe"),
    ("configure", "roles", "CREATE ROLE isolation_probe"),
    ("configure", "its role's rights", "ALTER ROLE CURRENT_USER BYPASSRLS"),
)  # fmt: skip
"""Forbidden to every role of a tenant: action, target, harmless statement."""

TABLE: Final = "public.messages"
VIEW: Final = "messages"
"""In the role's own schema, where its search path leads."""

_NOT_FOR_READING: Final[tuple[tuple[Action, str, str], ...]] = (
    ("write", f"{VIEW} (its own rows)", "DELETE FROM messages"),
    ("configure", "its own schema", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
)
"""Forbidden to a role that reads rows, beside `FORBIDDEN`: action, target, statement."""


def own(client: SqlClient, mine: TenantTopology) -> list[Check]:
    """Try what the embedded broker must allow, and what is forbidden to every tenant."""
    findings = Findings(mine, mine)
    record = findings.record
    publish = "SELECT tenantry.publish_bytes('default', '', 'text/plain')"
    record("write", mine.exchange, client.attempt(publish))
    look = "SELECT FROM tenantry.look(%s, 1)"
    record("read", mine.queue_names[0], client.attempt(look, mine.queue_names[0]))
    for action, target, statement in FORBIDDEN:
        record(action, target, client.attempt(statement), forbidden=True)
    return findings.checks


_NOT_FOR_CONSUMING: Final[tuple[tuple[Action, str, str], ...]] = (
    ("write", "its own stream (through tenantry.publish_many)",
     f"SELECT tenantry.publish_many({_MESSAGE})"),
    ("read", "tenantry.queued", "SELECT FROM tenantry.queued LIMIT 1"),
    ("read", "tenantry.consumer_credentials",
     "SELECT FROM tenantry.consumer_credentials LIMIT 1"),
    ("read", "tenantry.consumer_groups", "SELECT FROM tenantry.consumer_groups LIMIT 1"),
    ("write", "tenantry.consumer_groups", "UPDATE tenantry.consumer_groups SET position = 0"),
    ("write", "tenantry.consumer_leases", "DELETE FROM tenantry.consumer_leases"),
)  # fmt: skip
"""Forbidden to a role that consumes, beside `FORBIDDEN`: action, target, statement."""


def consuming(client: SqlClient, mine: TenantTopology) -> list[Check]:
    """Try what a role that consumes must be allowed, and what it must be refused."""
    findings = Findings(mine, mine)
    record = findings.record
    for topic in dict.fromkeys(one.topic for one in mine.queues()):
        receive = "SELECT FROM tenantry.receive(%s, 1)"
        record("read", f"{mine.exchange} -> {topic}", client.attempt(receive, topic))
    look = "SELECT FROM tenantry.look(%s, 1)"
    queue = mine.queue_names[0]
    record("read", f"{queue} (before it is stored)", client.attempt(look, queue), forbidden=True)
    for action, target, statement in (*_NOT_FOR_CONSUMING, *FORBIDDEN):
        record(action, target, client.attempt(statement), forbidden=True)
    return findings.checks


def foreign(client: SqlClient, mine: TenantTopology, other: TenantTopology) -> list[Check]:
    """Try what must be refused: through the tenants' functions, round them, as another user."""
    findings = Findings(mine, other)
    record = findings.record
    for target, statement, parameters in _writes(other):
        record("write", target, client.attempt(statement, *parameters))
    for queue in (*other.queue_names, names.dead_letter_queue_name(other.tenant_id)):
        record("read", queue, client.attempt("SELECT FROM tenantry.look(%s, 1)", queue))
    for table in ("tenantry.queued", "tenantry.rejected", "public.messages"):
        target = f"{table} (rows of tenant {other.tenant_id})"
        query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(*table.split(".")))
        record("read", target, client.attempt(query))
    partition = names.partition_table_name(other.tenant_id)
    query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier("tenantry", partition))
    record("read", f"tenantry.{partition}", client.attempt(query))
    return findings.checks


def _writes(other: TenantTopology) -> Iterator[tuple[str, sql.Composed | str, tuple[object, ...]]]:
    tenant_id, exchange, queue = other.tenant_id, other.exchange, other.queue_names[0]
    yield exchange, _PUBLISH, (tenant_id,)
    yield f"{exchange} (through tenantry.publish_many)", _PUBLISH_MANY, (tenant_id,)
    yield f"{exchange} (round tenantry.publish)", _ENQUEUE, (exchange,)
    yield f"{queue} (its rows)", _DELETE, (tenant_id,)
    yield f"{queue} (by taking from it)", _TAKE, (tenant_id,)
    user = names.username(tenant_id)
    for words in ("SET ROLE {}", "SET SESSION AUTHORIZATION {}"):
        yield f"{exchange} (as {user})", sql.SQL(words).format(sql.Identifier(user)), ()


def reading(
    client: SqlClient, mine: TenantTopology, others: Sequence[TenantTopology]
) -> Iterator[Check]:
    """Try everything with a role of a tenant's that reads rows."""
    # A role's sessions begin read-only, which would refuse a write before its rights are checked.
    client.attempt("SELECT 1")
    client.lift_defaults()
    findings = Findings(mine, mine)
    findings.record("read", VIEW, client.attempt("SELECT FROM messages LIMIT 1"))
    for action, target, statement in (*_NOT_FOR_READING, *FORBIDDEN):
        findings.record(action, target, client.attempt(statement), forbidden=True)
    yield from findings.checks
    for other in others:
        yield from _rows_of(client, mine, other)


def _rows_of(client: SqlClient, mine: TenantTopology, other: TenantTopology) -> list[Check]:
    findings = Findings(mine, other)
    seen = client.sees("SELECT FROM public.messages WHERE tenant_id = %s LIMIT 1", other.tenant_id)
    findings.record("read", TABLE, AttemptResult.ALLOWED if seen else AttemptResult.REFUSED)
    leaf = names.partition_table_name(other.tenant_id)
    partition = sql.Identifier("tenantry", leaf)
    findings.record(
        "read",
        f"tenantry.{leaf}",
        client.attempt(sql.SQL("SELECT FROM {} LIMIT 1").format(partition)),
    )
    insert = sql.SQL(
        "INSERT INTO {} (tenant_id, id, position, topic, partition, body, created_at)"
        " VALUES ({}, 'isolation-probe', -1, '', 0, '', now())"
    )
    for table, shown in ((sql.Identifier("public", "messages"), TABLE), (partition, leaf)):
        statement = insert.format(table, sql.Literal(other.tenant_id))
        findings.record("write", shown, client.attempt(statement))
    user = sql.Identifier(names.username(other.tenant_id))
    become = sql.SQL("SET ROLE {}").format(user)
    findings.record(
        "read", f"{TABLE} (as its user)", client.attempt(become, missing=AttemptResult.REFUSED)
    )
    return findings.checks
