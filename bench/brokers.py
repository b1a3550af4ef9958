"""`python -m bench.brokers`: the same messages through each kind of broker, one after the other.

A tenant's own clients publish while the daemon stores. The figure that counts on a busy machine is
processor time a message, by process; the embedded broker's is the database's. Apache Iggy is
measured if `IGGY_SERVER` names its program.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from rich.console import Console
from rich.table import Table

from bench.load import wait_until
from bench.services import BROKERS, Services, as_json, compared, parser_for
from bench.subject import Subject

PUBLISHERS = 3
BATCH = 100
STEADY_RATE = 1000
STEADY_BATCH = 5
TENANT = "bench"
EXCHANGE = f"tenant_{TENANT}_stream"
WHO = ("publishers", "broker", "daemon", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Messages a second, microseconds of processor time a message, milliseconds to the commit."""

    rate: float
    processor: dict[str, float]
    median: float
    p99: float


def publish(url: str, count: int, batch: int, *, publishers: int, rate: float | None) -> list[int]:
    """Publish `count` messages from several processes; return their exit codes."""
    share = str(count // publishers)
    program = (sys.executable, "-m", "bench.sender")
    pace = [] if rate is None else [str(rate / publishers)]
    sending = [
        subprocess.Popen(
            [*program, EXCHANGE, f"events.{number}", share, str(batch), *pace],
            env=dict(os.environ, BENCH_URL=url),
        )
        for number in range(publishers)
    ]
    return [one.wait() for one in sending]


def measure(services: Services, count: int, seconds: int) -> Figures:
    """Publish and store as fast as possible, and then at a steady rate."""
    with services.running() as daemon:
        url = daemon.create(TENANT, topics=["events"], partitions=PUBLISHERS)
        processor = services.processor(daemon)
        publish(url, PUBLISHERS * BATCH, BATCH, publishers=PUBLISHERS, rate=None)
        wait_until(lambda: daemon.stored() >= PUBLISHERS * BATCH, timeout=60)
        before, stored, began = processor.used(), daemon.stored(), time.perf_counter()
        assert not any(publish(url, count, BATCH, publishers=PUBLISHERS, rate=None))
        wait_until(lambda: daemon.stored() - stored >= count, timeout=600)
        rate = count / (time.perf_counter() - began)
        after = processor.used()
        latencies = _latencies(daemon, url, services.db, seconds)
    return Figures(
        rate=rate,
        processor={who: (after[who] - before[who]) / count * 1e6 for who in WHO},
        median=statistics.median(latencies),
        p99=latencies[int(len(latencies) * 0.99)],
    )


def _latencies(daemon: Subject, url: str, db: str, seconds: int) -> list[float]:
    """Publish at a steady rate; return milliseconds from publishing to commit, sorted."""
    count, stored = STEADY_RATE * seconds, daemon.stored()
    with psycopg.connect(db) as connection:
        since = connection.execute("SELECT now()").fetchone()
    assert not any(publish(url, count, STEADY_BATCH, publishers=1, rate=STEADY_RATE))
    wait_until(lambda: daemon.stored() - stored >= count, timeout=60)
    with psycopg.connect(db) as connection:
        rows = connection.execute(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - published_at) * 1000"
            f" FROM tenantry.messages_{TENANT} WHERE published_at > %s",
            since,
        ).fetchall()
    return sorted(float(row[0]) for row in rows)


def main() -> None:
    """Measure each broker and print a table."""
    parser = parser_for("brokers", __doc__, kinds=tuple(BROKERS))
    parser.add_argument("--messages", type=int, default=90_000, help="a broker")
    parser.add_argument("--steady-seconds", type=int, default=10, help="for the latency figure")
    given = parser.parse_args()
    count = given.messages // (PUBLISHERS * BATCH) * PUBLISHERS * BATCH
    found = compared(given, lambda services: measure(services, count, given.steady_seconds))
    if given.json:
        print(as_json(found))
    else:
        show(found)


def show(found: Mapping[str, Figures]) -> None:
    """Print the figures as a table."""
    table = Table(title="250-byte JSON, confirmed on the disk, published and stored at once")
    for heading in ("", "messages/s", *(f"{one}, µs" for one in WHO), "median, ms", "p99, ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for kind, one in found.items():
        used = (f"{one.processor[who]:.0f}" for who in WHO)
        table.add_row(kind, f"{one.rate:,.0f}", *used, f"{one.median:.1f}", f"{one.p99:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"µs: processor time a message, of {PUBLISHERS} publishers together and of each server;"
        " the embedded broker's is the database's"
    )
    console.print(f"ms: from publishing to the commit, at {STEADY_RATE} messages/s")


if __name__ == "__main__":
    main()
