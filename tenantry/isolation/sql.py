"""What a tenant's role can reach on the embedded broker: each attempt is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from psycopg import sql

from tenantry.domain import names
from tenantry.isolation.hostile_sql import FORBIDDEN
from tenantry.tenant_client.access import TenantNames
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

Told = Callable[..., object]
"""Called with each attempt: what was tried, on what, and what came of it (`Notes.note`)."""


def own(link: SqlClient, mine: TenantNames, tell: Told) -> None:
    """Try what must be allowed, and what no tenant may."""
    publish = "SELECT tenantry.publish_bytes('default', '', 'text/plain')"
    tell("write", mine.stream, link.attempt(publish))
    look = "SELECT FROM tenantry.look(%s, 1)"
    tell("read", mine.queues[0], link.attempt(look, mine.queues[0]))
    for action, target, statement in FORBIDDEN:
        tell(action, target, link.attempt(statement), forbidden=True)


def foreign(link: SqlClient, other: TenantNames, tell: Told) -> None:
    """Try what must be refused: by the functions for tenants, round them, and as somebody else."""
    for target, statement, parameters in _writes(other):
        tell("write", target, link.attempt(statement, *parameters))
    for queue in (*other.queues, names.dead_letter_queue_name(other.tenant_id)):
        tell("read", queue, link.attempt("SELECT FROM tenantry.look(%s, 1)", queue))
    for table in ("tenantry.queued", "tenantry.rejected", "public.messages"):
        target = f"{table} (rows of tenant {other.tenant_id})"
        query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier(*table.split(".")))
        tell("read", target, link.attempt(query))
    partition = names.partition_table_name(other.tenant_id)
    query = sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier("tenantry", partition))
    tell("read", f"tenantry.{partition}", link.attempt(query))


def _writes(other: TenantNames) -> Iterator[tuple[str, sql.Composed | str, tuple[object, ...]]]:
    tenant_id, stream, queue = other.tenant_id, other.stream, other.queues[0]
    yield stream, _PUBLISH, (tenant_id,)
    yield f"{stream} (through tenantry.publish_many)", _PUBLISH_MANY, (tenant_id,)
    yield f"{stream} (round tenantry.publish)", _ENQUEUE, (stream,)
    yield f"{queue} (its rows)", _DELETE, (tenant_id,)
    yield f"{queue} (by taking from it)", _TAKE, (tenant_id,)
    user = names.username(tenant_id)
    for words in ("SET ROLE {}", "SET SESSION AUTHORIZATION {}"):
        yield f"{stream} (as {user})", sql.SQL(words).format(sql.Identifier(user)), ()
