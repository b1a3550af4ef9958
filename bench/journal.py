"""`python -m bench.journal`: what the journal costs in parts, and what archiving takes.

It runs on a PostgreSQL of its own. It measures appends of one event each, with the schema from
before there were parts, with one part and with fifty, and reads of a stream and of pages. Then it
archives a part as the command does, and restores it. Processor time is that of the session's server
process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg

from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.migrations import migrate, migrations
from tenantry.database.pool import Database
from tenantry.journal import archives
from tenantry.journal.parts import LINES
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.journal.port import Metadata
from tenantry.sql import queries

BEFORE_PARTS: Final = 39
STREAMS: Final = 50
ROUNDS: Final = 3
DATA: Final = json.dumps({"tenant_id": "acme", "error": "x" * 200})


def processor_seconds(connection: psycopg.Connection) -> float:
    """Return the processor time that a session's server process has used."""
    text = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2]
    user, system = text.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def cost(connection: psycopg.Connection, times: int, call: Callable[[int], object]) -> float:
    """Return the microseconds of processor time of a call, the median of some rounds."""
    for n in range(50):
        call(n)
    rounds = []
    for _ in range(ROUNDS):
        began = processor_seconds(connection)
        for n in range(times):
            call(n)
        rounds.append((processor_seconds(connection) - began) / times * 1e6)
    return statistics.median(rounds)


def figures(url: str, *, parts: int, times: int) -> dict[str, float]:
    """Measure a journal with `parts` parts; 0 is the schema from before there were any."""
    known = [one for one in migrations() if parts or one.number <= BEFORE_PARTS]
    migrate(url, known=known)
    sql = queries("journal")
    read_all = sql["read_all_of_parts" if parts > 1 else "read_all"]
    append = sql["append"] if parts else sql["append"].replace(b",\n    %(new_ids)s::boolean", b"")

    def add(n: int, *, new: bool = True) -> None:
        given = {
            "stream": f"{'tenant' if new else 'dead_letters'}-{n % STREAMS}",
            "expected": None,
            "ids": [uuid4()],
            "types": ["TenantPaused"],
            "schema_versions": [1],
            "data": [DATA],
            "metadata": "{}",
        }
        connection.execute(append, given | ({"new_ids": new} if parts else {})).fetchall()

    def page(n: int) -> None:
        given = {"after": n, "limit": STREAMS, "first": 1 + n // STREAMS, "last": 2 + n // STREAMS}
        connection.execute(read_all, given).fetchall()

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")  # the disk is not measured
        for _ in range(parts - 1):
            for n in range(STREAMS):
                add(n)
            connection.execute("SELECT tenantry.begin_part(1)")
        return {
            "an event": cost(connection, times, add),
            "an event whose id is looked for": cost(connection, times, lambda n: add(n, new=False)),
            "the last events of a stream": cost(
                connection,
                times,
                lambda n: connection.execute(
                    sql["read_stream"],
                    {"stream": f"tenant-{n % STREAMS}", "after": parts, "limit": 10},
                ).fetchall(),
            ),
            "a page of 50": cost(connection, times, page),
        }


def archive(url: str, directory: Path, events: int) -> None:
    """Archive a part with `events` events and restore it; print how long each step took."""
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        for first in range(0, events, 1000):
            connection.execute(
                "SELECT count(*) FROM tenantry.append_events(%s, NULL,"
                " ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 1000)),"
                " ARRAY(SELECT 'MessageIdsReused' FROM generate_series(1, 1000)),"
                " ARRAY(SELECT 1 FROM generate_series(1, 1000)),"
                " ARRAY(SELECT %s::jsonb FROM generate_series(1, 1000)), '{}', true)",
                [f"dead_letters-{first // 1000 % STREAMS}", DATA],
            )
    database = Database(url)
    database.open()
    try:
        parts = PostgresJournalParts(database)
        parts.begin(1)
        part = parts.listed()[0]
        shown = {
            "part": 1, "first_position": 1, "last_position": part.last_position,
            "first_at": None, "last_at": None, "events": part.events,
        }  # fmt: skip

        def lines() -> Iterator[str]:
            after = 0
            while found := parts.lines(1, after=after, limit=LINES):
                yield from (line for _, line in found)
                after = found[-1][0]

        by = Metadata(actor="bench")
        began = time.monotonic()
        written = archives.write(directory, shown, lines())
        print(
            f"write and read back: {time.monotonic() - began:.1f} s, "
            f"{written.file.stat().st_size / 1e6:.1f} MB"
        )
        began = time.monotonic()
        parts.archive(1, digest=written.summary.digest, archive="bench", metadata=by)
        print(f"verify in the database and remove: {time.monotonic() - began:.1f} s")
        began, last, chunk = time.monotonic(), 0, list[str]()
        for line in written.lines():
            chunk.append(line)
            if len(chunk) == LINES // 2:
                last, chunk = parts.put_back(1, chunk, after=last), []
        if chunk:
            parts.put_back(1, chunk, after=last)
        parts.restore(1, by)
        print(f"restore: {time.monotonic() - began:.1f} s")
    finally:
        database.close()


def main() -> None:
    """Run the benchmark and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.journal", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, help="calls a round")
    parser.add_argument("--events", type=int, default=200_000, help="in the part that is archived")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "pg")
        url = server.start()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                for name in ("parts_0", "parts_1", "parts_50", "archive"):
                    connection.execute(f"CREATE DATABASE {name}".encode())
            for parts in (0, 1, 50):
                found = figures(of(url, f"parts_{parts}"), parts=parts, times=given.times)
                print(f"{parts or 'no'} part(s), µs of the server's processor time:")
                for name, micros in found.items():
                    print(f"  {name}: {micros:.0f}")
            print(f"a part of {given.events:,} events:")
            archive(of(url, "archive"), Path(directory) / "archive", given.events)
        finally:
            server.stop()


def of(url: str, name: str) -> str:
    """Return the URL of another database of the server."""
    return psycopg.conninfo.make_conninfo(url, dbname=name)


if __name__ == "__main__":
    main()
