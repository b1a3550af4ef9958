"""`python -m bench.retention`: what removing messages costs, beside messages that pour in.

A tenant has very many rows on a PostgreSQL of its own. Another process stores messages as fast as
possible: alone and while as many are removed as are stored, by turns. With `--compare`, the cost of
the rejected alternative is measured, too: partitions by position that are dropped as a whole, with
the ids in a table of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg

from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.messages.port import Incoming, Order
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.retention import EVERY, Retention
from tenantry.messages.retention_postgres import PostgresMessageRemovals

TENANT: Final = "acme"
BATCH: Final = 500
WRITERS: Final = 2
ALTERNATIONS: Final = 3
PAYLOAD: Final = json.dumps({"text": "x" * 230}).encode()

FILL: Final = """
CREATE TABLE tenantry.messages_acme (LIKE public.messages INCLUDING ALL EXCLUDING INDEXES);
INSERT INTO tenantry.messages_acme
    (tenant_id, id, position, topic, partition, payload, created_at)
SELECT 'acme', gen_random_uuid()::text, n, 'default', 0, %(payload)s::jsonb,
       now() - interval '30 days' + n * interval '1 ms'
FROM generate_series(1, %(rows)s) AS n;
ALTER TABLE tenantry.messages_acme ADD PRIMARY KEY (tenant_id, id);
CREATE UNIQUE INDEX ON tenantry.messages_acme (position);
CREATE INDEX ON tenantry.messages_acme (topic, position);
SELECT tenantry.guard_partition('messages_acme');
SELECT tenantry.create_messages_partition('acme');
UPDATE tenantry.tenant_counters SET position = %(rows)s, stored = %(rows)s;
"""


def store_messages(url: str, seconds: float, counted: Any, stop: Any) -> None:
    """Store messages as fast as possible; runs in a process of its own."""
    database = Database(url, pool_size=WRITERS)
    database.open()
    store = PostgresMessageStore(database)
    until = time.monotonic() + seconds

    def write(_: int) -> None:
        while time.monotonic() < until and not stop.is_set():
            batch = [
                Incoming(str(uuid4()), "default", 0, PAYLOAD, "application/json", None, None)
                for _ in range(BATCH)
            ]
            store.store(TENANT, batch)
            with counted.get_lock():
                counted.value += BATCH

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    database.close()


@contextmanager
def storing(url: str, seconds: float) -> Iterator[Any]:
    """Store in the background; yield the count of stored messages."""
    context = get_context("spawn")
    counted, stop = context.Value("q", 0), context.Event()
    process = context.Process(target=store_messages, args=(url, seconds, counted, stop))
    process.start()
    try:
        while not counted.value:
            time.sleep(0.05)
        yield counted
    finally:
        stop.set()
        process.join()


def rate_of(counted: Any, seconds: float) -> float:
    """Measure messages a second."""
    before, began = counted.value, time.monotonic()
    time.sleep(seconds)
    return float((counted.value - before) / (time.monotonic() - began))


def processor(connection: psycopg.Connection[Any]) -> float:
    """Return the processor seconds of a session's server process."""
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit(connection: psycopg.Connection[Any], rows: int | None) -> None:
    """Set in the read model how many rows the tenant keeps; None for no limit."""
    state = {"limits": {} if rows is None else {"retention_rows": rows}}
    connection.execute(
        "INSERT INTO tenantry.tenants (id, version, lifecycle, state, created_at, updated_at)"
        " VALUES ('acme', 1, 'active', %s, now(), now())"
        " ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        [json.dumps(state)],
    )


def held(connection: psycopg.Connection[Any]) -> int:
    """Return the number of rows by the tenant's counts."""
    row = connection.execute(
        "SELECT c.stored - coalesce(r.by_rows + r.by_age, 0) FROM tenantry.tenant_counters AS c"
        " LEFT JOIN tenantry.removals AS r USING (tenant_id)"
    ).fetchone()
    return int(row[0]) if row else 0


def sizes(connection: psycopg.Connection[Any]) -> str:
    """Return the sizes of table, indexes and remembered ids as text."""
    row = connection.execute(
        "SELECT pg_table_size('tenantry.messages_acme') / 1048576,"
        " pg_indexes_size('tenantry.messages_acme') / 1048576, (SELECT"
        " sum(pg_total_relation_size(format('tenantry_fence.remembered_%s', n)::regclass))"
        " / 1048576 FROM generate_series(0, 2) AS n)"
    ).fetchone()
    return "table {} MB, indexes {} MB, remembered ids {:.0f} MB".format(*(row or ()))


def pages(store: PostgresMessageStore) -> str:
    """Time pages of 50 from the beginning, and behind the last one read."""
    found = []
    for after in (None, 1000):
        times = []
        for _ in range(20):
            began = time.monotonic()
            store.page(TENANT, after=after, limit=50, order=Order.ASCENDING)
            times.append((time.monotonic() - began) * 1000)
        found.append(f"{statistics.median(times):.1f}")
    return f"a page of 50 in {' and '.join(found)} ms"


def fill(connection: psycopg.Connection[Any], rows: int) -> None:
    """Create the table and its rows, unless it exists."""
    there = connection.execute("SELECT to_regclass('tenantry.messages_acme')").fetchone()
    if there is not None and there[0] is not None:
        return
    connection.execute("SET maintenance_work_mem = '1GB'; SET synchronous_commit = off")
    began = time.monotonic()
    for query in FILL.split(";")[:-1]:
        values = {"rows": rows, "payload": PAYLOAD.decode()}
        connection.execute(query.encode(), values if "%(" in query else None)
    connection.execute("VACUUM ANALYZE tenantry.messages_acme")
    print(f"{rows} rows in {time.monotonic() - began:.0f} s; {sizes(connection)}")


def alone(connection: psycopg.Connection[Any], count: int) -> None:
    """Measure the cost of removing messages while nothing else runs."""
    rows = held(connection)
    limit(connection, rows - count)
    connection.execute("SELECT tenantry.turn_remembered()")
    connection.execute("SELECT tenantry.begin_removing('acme')")
    wal = "SELECT pg_current_wal_insert_lsn()"
    (before,) = connection.execute(wal).fetchone() or ("",)
    began, used = time.monotonic(), processor(connection)
    longest = 0.0
    while True:
        step = time.monotonic()
        row = connection.execute("SELECT more FROM tenantry.remove_messages('acme', 2000)")
        longest = max(longest, time.monotonic() - step)
        if not (row.fetchone() or (False,))[0]:
            break
    took, used = time.monotonic() - began, processor(connection) - used
    written = connection.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", [before]
    ).fetchone()
    print(
        f"removed {count}: {took / count * 1e6:.1f} us a message, of which the processor"
        f" {used / count * 1e6:.1f}; WAL {float((written or (0,))[0]) / count:.0f} bytes a message;"
        f" the longest of 2000 took {longest * 1000:.0f} ms"
    )
    began, used = time.monotonic(), processor(connection)
    connection.execute("VACUUM tenantry.messages_acme")
    took, used = time.monotonic() - began, processor(connection) - used
    print(f"VACUUM after it: {took:.1f} s, the processor {used:.1f} s; {sizes(connection)}")


STORE: Final = """
SELECT stored FROM tenantry.store_messages(
    'acme', %(ids)s, array_fill('default'::text, ARRAY[500]), array_fill(0, ARRAY[500]),
    array_fill(%(payload)s::jsonb, ARRAY[500]), array_fill(NULL::bytea, ARRAY[500]),
    array_fill(NULL::text, ARRAY[500]), array_fill(NULL::jsonb, ARRAY[500]),
    array_fill(NULL::timestamptz, ARRAY[500]), 0)
"""


def looking(connection: psycopg.Connection[Any], count: int) -> None:
    """Measure storing with and without a look at the remembered ids, alternately."""
    number = connection.execute("SELECT number FROM tenantry.removals").fetchone()
    used = dict.fromkeys(("without", "with"), 0.0)
    for _ in range(0, count, BATCH):
        for name in used:
            connection.execute(
                "UPDATE tenantry.tenant_counters SET remembers = %s",
                [number[0] if number and name == "with" else None],
            )
            ids = [str(uuid4()) for _ in range(BATCH)]
            before = processor(connection)
            connection.execute(STORE, {"ids": ids, "payload": PAYLOAD.decode()})
            used[name] += processor(connection) - before
    print(
        f"storing takes the database {used['without'] / count * 1e6:.1f} us of the processor a"
        f" message where nothing is remembered, {used['with'] / count * 1e6:.1f} with"
        f" {sizes(connection).rsplit(', ', 1)[1]}"
    )


def rounds(connection: psycopg.Connection[Any], count: int, rows: int) -> None:
    """Store and remove the same number again and again; print how large table and indexes get.

    VACUUM runs when autovacuum would: whenever a fifth of the rows are dead.
    """
    dead = 0
    limit(connection, held(connection))
    retention_of = "SELECT more FROM tenantry.remove_messages('acme', 2000)"
    for number in range(1, count + 1):
        for _ in range(0, rows, BATCH):
            ids = [str(uuid4()) for _ in range(BATCH)]
            connection.execute(STORE, {"ids": ids, "payload": PAYLOAD.decode()})
        while (connection.execute(retention_of).fetchone() or (False,))[0]:
            pass
        dead += rows
        if dead > held(connection) / 5:
            connection.execute("VACUUM tenantry.messages_acme")
            dead = 0
        if number % 4 == 0:
            print(f"after {number} times {rows} stored and removed: {sizes(connection)}")


def beside(
    connection: psycopg.Connection[Any], url: str, database: Database, seconds: float
) -> None:
    """Measure storing alone and beside removing as many as are stored, by turns."""
    store = PostgresMessageStore(database)
    retention = Retention(PostgresMessageRemovals(database), mine=lambda _: True)
    limit(connection, None)
    rates: dict[str, list[float]] = {"alone": [], "beside": []}
    with storing(url, 600) as counted, removing(retention):
        for _ in range(ALTERNATIONS):
            limit(connection, None)
            time.sleep(3)
            rates["alone"].append(rate_of(counted, seconds))
            print(f"stored without removing: {rates['alone'][-1]:.0f} a second; {pages(store)}")
            limit(connection, held(connection))
            time.sleep(3)
            before = sum(retention.removed().values())
            began = time.monotonic()
            rates["beside"].append(rate_of(counted, seconds))
            gone = (sum(retention.removed().values()) - before) / (time.monotonic() - began)
            print(
                f"stored while {gone:.0f} a second ({gone * 60 / 1e6:.2f} million a minute) are"
                f" removed: {rates['beside'][-1]:.0f} a second; {pages(store)}; {sizes(connection)}"
            )
        limit(connection, None)
        time.sleep(3)
        rates["alone"].append(rate_of(counted, seconds))
        print(f"stored without removing: {rates['alone'][-1]:.0f} a second")
    # Each time beside removing is compared with the times before and after it.
    around = [(a + b) / 2 for a, b in zip(rates["alone"], rates["alone"][1:], strict=False)]
    losses = [
        with_it / without - 1 for with_it, without in zip(rates["beside"], around, strict=True)
    ]
    print(
        f"removing changes storing by {statistics.median(losses) * 100:+.1f} % (median of"
        f" {', '.join(f'{one * 100:+.1f}' for one in losses)})"
    )


@contextmanager
def removing(retention: Retention) -> Iterator[None]:
    """Remove what is beyond the limits, again and again."""
    done = threading.Event()

    def remove() -> None:
        while not done.is_set():
            retention.turn()
            done.wait(EVERY / 5)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        yield
    finally:
        done.set()
        retention.stop()
        thread.join()


def compare(connection: psycopg.Connection[Any], count: int) -> None:
    """Compare inserts: ids unique in the table, or in a second table beside one without them."""
    connection.execute(
        "CREATE TABLE one (LIKE public.messages INCLUDING ALL);"
        "CREATE UNIQUE INDEX ON one (position); CREATE INDEX ON one (topic, position);"
        "CREATE TABLE two (LIKE public.messages INCLUDING ALL EXCLUDING INDEXES);"
        "CREATE UNIQUE INDEX ON two (position); CREATE INDEX ON two (topic, position);"
        "CREATE INDEX ON two (id);"
        "CREATE TABLE ids (low bigint, high bigint, PRIMARY KEY (low, high))"
    )
    columns = "(tenant_id, id, position, topic, partition, payload, created_at)"
    given = (
        "SELECT 'acme', m.id, %(at)s + m.n, 'default', 0, %(payload)s::jsonb, now()"
        " FROM unnest(%(ids)s::text[]) WITH ORDINALITY AS m(id, n)"
    )
    # The second table's index on ids is for reading messages by id.
    ways = {
        "ids unique in the table": f"INSERT INTO one {columns} {given} ON CONFLICT DO NOTHING",
        "ids in a table of their own": "WITH new AS (INSERT INTO ids SELECT hashtextextended(i, 0),"
        " hashtextextended(i, 1) FROM unnest(%(ids)s::text[]) AS i ON CONFLICT DO NOTHING"
        f" RETURNING low) INSERT INTO two {columns} {given}"
        " WHERE hashtextextended(m.id, 0) IN (SELECT low FROM new)",
    }
    for name, query in ways.items():
        used, took = processor(connection), 0.0
        for at in range(0, count, BATCH):
            ids = [str(uuid4()) for _ in range(BATCH)]
            began = time.monotonic()
            connection.execute(query.encode(), {"ids": ids, "at": at, "payload": PAYLOAD.decode()})
            took += time.monotonic() - began
        used = processor(connection) - used
        print(
            f"{name}: {took / count * 1e6:.1f} us a message, the processor {used / count * 1e6:.1f}"
        )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--remove", type=int, default=1_000_000, help="while all else is still")
    parser.add_argument("--seconds", type=float, default=20.0, help="a figure")
    parser.add_argument("--rounds", type=int, default=0, help="of storing and removing; 0: skip")
    parser.add_argument("--data", type=Path, help="a directory that is kept, rows and all")
    parser.add_argument("--compare", type=int, default=0, help="inserts each way; 0: skip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = options.data or Path(name)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        postgres = EmbeddedPostgres(directory / "postgres")
        try:
            url = postgres.start()
            database = Database(url)
            migrate(database)
            database.open()
            with psycopg.connect(url, autocommit=True) as connection:
                fill(connection, options.rows)
                if options.remove:
                    alone(connection, options.remove)
                    looking(connection, options.remove // 5)
                if options.rounds:
                    rounds(connection, options.rounds, options.rows // 10)
                if options.compare:
                    compare(connection, options.compare)
                if options.seconds:
                    beside(connection, url, database, options.seconds)
            database.close()
        finally:
            postgres.stop()


if __name__ == "__main__":
    main()
