"""`python -m bench.embedded`: the embedded broker, beside a job queue for Python on PostgreSQL.

Both get the same messages and do the same with each: one row, once. Then messages flow at a steady
rate, and the size of the queues' tables is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from bench import subject
from bench.load import body, wait_until
from bench.services import server_of
from bench.subject import Subject
from tenantry.database.embedded import EmbeddedPostgres

PUBLISHERS = 6
BATCH = 100
SAMPLES = 10
SIZES = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint / 1000000.0,
       coalesce(sum(s.n_dead_tup), 0)::bigint
FROM pg_class AS c JOIN pg_stat_user_tables AS s ON s.relid = c.oid
WHERE c.relname ~ '^queued_[0-9]$'
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """The size of the queues' tables at one moment of the steady flow."""

    stored: int
    megabytes: float
    dead_rows: int


def processor_seconds(running: Subject, db: str) -> float:
    """Add up the processor time of the daemon, the server and the publishers so far."""
    server = server_of(db)
    family = [server, *server.children(), psutil.Process(running.pid)]
    used = sum(sum(one.cpu_times()[:2]) for one in family)
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used + sum(server.cpu_times()[2:4]) + own.ru_utime + own.ru_stime


def publishers(url: str, count: int, rate: float | None) -> list[subprocess.Popen[bytes]]:
    """Start processes that publish `count` messages together, with the tenant's own role."""
    share = count // PUBLISHERS
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bench.publisher", f"events.{number}", str(share), str(BATCH)]
            + ([] if rate is None else [str(rate / PUBLISHERS)]),
            env=dict(os.environ, BENCH_URL=url),
        )
        for number in range(PUBLISHERS)
    ]


def embedded(running: Subject, db: str, url: str, count: int) -> tuple[float, float]:
    """Publish and store at once; measure from the first publish to the last row.

    Return messages a second, and the microseconds of processor time for each, of the
    publishers, the server and the daemon together: on a busy machine the rate says little.
    """
    before, count = running.stored(), count // PUBLISHERS * PUBLISHERS
    processor = processor_seconds(running, db)
    started = time.perf_counter()
    sending = publishers(url, count, None)
    wait_until(lambda: running.stored() - before >= count, timeout=600, every=0.1)
    rate = count / (time.perf_counter() - started)
    assert all(one.wait() == 0 for one in sending)
    return rate, (processor_seconds(running, db) - processor) / count * 1e6


def steady(running: Subject, db: str, url: str, count: int, rate: float) -> list[Sample]:
    """Publish at a steady rate; measure the queues' tables `SAMPLES` times."""
    before, count = running.stored(), count // PUBLISHERS * PUBLISHERS
    sending = publishers(url, count, rate)
    samples = []
    with psycopg.connect(db, autocommit=True) as connection:
        for part in range(1, SAMPLES + 1):
            due = count * part // SAMPLES
            wait_until(lambda due=due: running.stored() - before >= due, timeout=600)  # type: ignore[misc]
            row = connection.execute(SIZES).fetchone()
            assert row is not None
            samples.append(Sample(running.stored() - before, float(row[0]), row[1]))
    assert all(one.wait() == 0 for one in sending)
    return samples


def procrastinate(db: str, count: int) -> float:
    """Do the same with procrastinate: a job a message, deferred in batches; messages a second."""
    import procrastinate as peer

    app = peer.App(connector=peer.PsycopgConnector(conninfo=db, max_size=20))

    async def run() -> float:
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            async with await psycopg.AsyncConnection.connect(db, autocommit=True) as connection:
                await connection.execute(
                    "CREATE TABLE peer (id text PRIMARY KEY, payload jsonb NOT NULL,"
                    " created_at timestamptz NOT NULL DEFAULT now())"
                )

            @app.task(name="store")
            async def store(id: str, payload: dict[str, Any]) -> None:  # noqa: A002
                await app.connector.execute_query_async(
                    "INSERT INTO peer (id, payload) VALUES (%(id)s, %(payload)s)"
                    " ON CONFLICT DO NOTHING",
                    id=id,
                    payload=payload,
                )

            payload = json.loads(body())
            started = time.perf_counter()

            async def fill() -> None:
                for start in range(0, count, BATCH):
                    jobs = [{"id": str(n), "payload": payload} for n in range(start, start + BATCH)]
                    await store.batch_defer_async(*jobs)

            await asyncio.gather(fill(), _work(app, count))
            return count / (time.perf_counter() - started)

    return asyncio.run(run())


async def _work(app: Any, count: int) -> None:
    worker = asyncio.create_task(
        app.run_worker_async(
            concurrency=20,
            install_signal_handlers=False,
            delete_jobs="successful",
            fetch_job_polling_interval=0.1,
        )
    )
    while True:
        await asyncio.sleep(0.05)
        row = await app.connector.execute_query_one_async("SELECT count(*) AS n FROM peer")
        if row["n"] >= count:
            break
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.embedded", description=__doc__)
    parser.add_argument("--messages", type=int, default=150_000, help="for the embedded broker")
    parser.add_argument("--peer-messages", type=int, default=3_000, help="for procrastinate")
    parser.add_argument("--steady", type=int, default=1_000_000, help="in a steady flow; 0: skip")
    parser.add_argument("--rate", type=float, default=5_000, help="of the steady flow, a second")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if importlib.util.find_spec("procrastinate") is None:
        parser.error(
            "procrastinate is missing: .venv/bin/pip install -c constraints.txt -e '.[bench]'"
        )
    figures: dict[str, Any] = {}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = EmbeddedPostgres(directory / "postgres")
        try:
            db = server.start()
            with console.status("procrastinate"):
                figures["procrastinate"] = procrastinate(db, options.peer_messages)
            with subject.running(directory / "daemon", {}, db) as running:
                url = running.create("bench", topics=["events"], partitions=PUBLISHERS)
                with console.status("the embedded broker"):
                    rate, processor = embedded(running, db, url, options.messages)
                    figures |= {"embedded": rate, "processor_us": processor}
                if options.steady:
                    with console.status(f"{options.steady:,} messages, steadily"):
                        found = steady(running, db, url, options.steady, options.rate)
                        figures["steady"] = [asdict(one) for one in found]
        finally:
            server.stop()
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    show(figures)


def show(figures: dict[str, Any]) -> None:
    table = Table(title="250-byte JSON, from publishing to a committed row, one after the other")
    for heading in ("", "messages/s", "times procrastinate"):
        table.add_column(heading, justify="left" if not heading else "right")
    peer = figures["procrastinate"]
    for key in ("embedded", "procrastinate"):
        table.add_row(key, f"{figures[key]:,.0f}", f"{figures[key] / peer:.1f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"processor time a message, all together: {figures['processor_us']:.0f} µs")
    samples: Sequence[dict[str, Any]] = figures.get("steady", ())
    if samples:
        table = Table(title="the queues' tables in a steady flow")
        for heading in ("stored", "megabytes", "dead rows"):
            table.add_column(heading, justify="right")
        for one in samples:
            table.add_row(f"{one['stored']:,}", f"{one['megabytes']:.0f}", f"{one['dead_rows']:,}")
        console.print(table)


if __name__ == "__main__":
    main()
