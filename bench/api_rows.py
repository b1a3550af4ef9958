"""Rows to read: fills a tenant's partition in the database itself, faster than by messages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import sql

from bench.load import body
from tenantry.domain import names

TOPICS = ("events", "logs", "notifications")
"""Every third row has the same topic."""

_CHUNK = 250_000
_WRITERS = 3

_INSERT = """
INSERT INTO {table} (tenant_id, id, position, topic, partition, payload, content_type, created_at)
SELECT {tenant}, 'm-' || lpad(n::text, 12, '0'), n, ({topics}::text[])[1 + n % 3], 0,
       jsonb_set({payload}::jsonb, '{{number}}', to_jsonb(n)), 'application/json',
       timestamptz '2026-01-01' + n * interval '10 ms'
FROM generate_series({first}, {last}) AS n
"""


def fill(db: str, tenant: str, rows: int) -> None:
    """Give `tenant`, which exists and has no rows, rows with the positions 1 to `rows`."""
    table = sql.Identifier("tenantry", names.partition_table_name(tenant))
    firsts = iter(range(1, rows + 1, _CHUNK))
    guard = threading.Lock()

    def write(_: int) -> None:
        with psycopg.connect(db, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            while True:
                with guard:
                    first = next(firsts, None)
                if first is None:
                    return
                query = sql.SQL(_INSERT).format(
                    table=table,
                    tenant=sql.Literal(tenant),
                    topics=sql.Literal(list(TOPICS)),
                    payload=sql.Literal(body().decode()),
                    first=sql.Literal(first),
                    last=sql.Literal(min(rows, first + _CHUNK - 1)),
                )
                connection.execute(query)

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, range(_WRITERS)))
    with psycopg.connect(db, autocommit=True) as connection:
        connection.execute(
            "UPDATE tenantry.tenant_counters SET position = %s, stored = %s WHERE tenant_id = %s",
            (rows, rows, tenant),
        )
        # Leaves the table as the server's own autovacuum would.
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))
        connection.execute("CHECKPOINT")
