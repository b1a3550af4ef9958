"""`python -m bench.brokers`: the same messages through each kind of broker, one after the other.

A tenant's own clients publish, the daemon stores meanwhile. What counts on a busy machine is
processor time a message, by process; the embedded broker's is the database's. Apache Iggy is
measured where `IGGY_SERVER` names its program.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from bench.load import wait_until
from bench.subject import Subject, running
from tenantry.broker.iggy.client import library
from tenantry.broker.port import BrokerError
from tenantry.database.embedded import EmbeddedPostgres
from tests.iggy_server import PrivateIggy
from tests.rabbitmq_node import PrivateNode

PUBLISHERS = 3
BATCH = 100
STEADY_RATE = 1000
STEADY_BATCH = 5
TENANT = "bench"
EXCHANGE = f"tenant_{TENANT}_stream"
WHO = ("publishers", "broker", "daemon", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that runs: its settings for a daemon, and its process, if it has one of its own."""

    settings: Mapping[str, str]
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Messages a second, microseconds of processor time a message, milliseconds to the commit."""

    rate: float
    processor: dict[str, float]
    median: float
    p99: float


@contextmanager
def embedded(_directory: Path) -> Iterator[Broker]:
    """Have the database itself be the broker."""
    yield Broker(settings={})


@contextmanager
def rabbitmq(directory: Path) -> Iterator[Broker]:
    """Start a RabbitMQ."""
    with PrivateNode(directory) as node:
        settings = {"RABBITMQ_URL": node.url, "RABBITMQ_MANAGEMENT_URL": node.management_url}
        yield Broker(settings=settings, pid=node.pid)


@contextmanager
def iggy(directory: Path) -> Iterator[Broker]:
    """Start an Iggy server."""
    server = PrivateIggy(Path(os.environ["IGGY_SERVER"]), directory)
    try:
        server.start()
        yield Broker(settings={"BROKER_URL": server.url}, pid=server.pid)
    finally:
        server.stop()


BROKERS: Mapping[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "embedded": embedded,
    "RabbitMQ": rabbitmq,
    "Apache Iggy": iggy,
}


def missing(kind: str) -> str | None:
    """Say why a kind of broker can't be measured here."""
    if kind != "Apache Iggy":
        return None
    try:
        library()
    except BrokerError as error:
        return str(error)
    if not os.environ.get("IGGY_SERVER"):
        return "set IGGY_SERVER=/path/to/iggy-server"
    return None


class Processor:
    """What processes have used so far, in seconds, with those of their children that are gone."""

    def __init__(self, daemon: int, database: int, broker: int | None) -> None:
        self._roots = {"daemon": daemon, "database": database, "broker": broker}

    def used(self) -> dict[str, float]:
        """Add it up, by who it was."""
        return {
            who: 0.0 if pid is None else _family(psutil.Process(pid))
            for who, pid in self._roots.items()
        } | {"publishers": sum(os.times()[2:4])}


def _family(root: psutil.Process) -> float:
    total = 0.0
    for one in (root, *root.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def publish(url: str, count: int, batch: int, *, publishers: int, rate: float | None) -> list[int]:
    """Publish so many messages from some processes; give their exit codes."""
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


def measure(daemon: Subject, broker: Broker, db: str, count: int, seconds: int) -> Figures:
    """Let messages through as fast as they go, and then at a steady rate."""
    made = {"id": TENANT, "name": TENANT, "topics": ["events"], "partitions": PUBLISHERS}
    credentials = daemon.call("POST", "/tenants", json=made)["credentials"]
    url = next(value for name, value in credentials.items() if name.endswith("_url"))
    with psycopg.connect(db) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        server = psutil.Process(row[0]).parent()
        assert server is not None
    processor = Processor(daemon.pid, server.pid, broker.pid)
    publish(url, PUBLISHERS * BATCH, BATCH, publishers=PUBLISHERS, rate=None)
    wait_until(lambda: daemon.stored() >= PUBLISHERS * BATCH, timeout=60)
    before, stored, began = processor.used(), daemon.stored(), time.perf_counter()
    assert not any(publish(url, count, BATCH, publishers=PUBLISHERS, rate=None))
    wait_until(lambda: daemon.stored() - stored >= count, timeout=600)
    rate = count / (time.perf_counter() - began)
    after = processor.used()
    latencies = _latencies(daemon, url, db, seconds)
    return Figures(
        rate=rate,
        processor={who: (after[who] - before[who]) / count * 1e6 for who in WHO},
        median=statistics.median(latencies),
        p99=latencies[int(len(latencies) * 0.99)],
    )


def _latencies(daemon: Subject, url: str, db: str, seconds: int) -> list[float]:
    """Publish at a steady rate; milliseconds from publishing to commit, sorted."""
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
    parser = argparse.ArgumentParser(prog="python -m bench.brokers", description=__doc__)
    parser.add_argument("--messages", type=int, default=90_000, help="a broker")
    parser.add_argument("--steady-seconds", type=int, default=10, help="for the latency figure")
    parser.add_argument("--only", choices=list(BROKERS), action="append", help="this one")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    count = options.messages // (PUBLISHERS * BATCH) * PUBLISHERS * BATCH
    console, found = Console(stderr=True), dict[str, Figures]()
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for number, (kind, start) in enumerate(BROKERS.items()):
            if kind not in (options.only or BROKERS):
                continue
            if (reason := missing(kind)) is not None:
                print(f"without {kind}: {reason}", file=sys.stderr)
                continue
            with console.status(kind):
                home = directory / str(number)
                home.mkdir(mode=0o755)
                found[kind] = _alone(start, home, count, options.steady_seconds)
    if options.json:
        print(json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2))
        return
    show(found)


def _alone(
    start: Callable[[Path], AbstractContextManager[Broker]], home: Path, count: int, seconds: int
) -> Figures:
    """Measure one broker on services that nobody else uses."""
    postgres = EmbeddedPostgres(home / "postgres")
    try:
        with psycopg.connect(postgres.start(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        postgres.stop()
        db = postgres.start()
        with start(home / "broker") as broker, running(home / "daemon", broker.settings, db) as one:
            return measure(one, broker, db, count, seconds)
    finally:
        postgres.stop()


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
