"""`python -m bench.tenants`: what many tenants cost in one daemon, nearly all of them asleep.

Tenants are made over the API, several at once; the daemon is started again, in order and after it
was killed; then it idles, and single messages wake tenants that have never had one. What some of
them store is measured twice: while they are all there is, and among all the others. What counts on
a busy machine is processor time, by process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
from rich.console import Console
from rich.table import Table

from bench.brokers import BROKERS, Broker, Processor, missing
from bench.load import body, wait_until
from bench.subject import Subject, running
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.domain import names
from tenantry.tenant_client.amqp import TenantMessage
from tenantry.tenant_client.connecting import client_for

TOPIC = "events"
BATCH = 100
SETTLING = 30.0
"""Seconds before idling is measured: workers have been let go by then, caches are filled."""

WHO = ("daemon", "broker", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    tenants: int
    busy: int
    at_once: int
    messages: int
    sleepers: int
    idle_seconds: float


@dataclass(slots=True, kw_only=True)
class Figures:
    """What was found; processor time a creation or message in ms or µs, idling in % of a core."""

    tenants: int
    created: float = 0.0
    creation: dict[str, float] = field(default_factory=dict)
    ready_again: float = 0.0
    ready_killed: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    rss_mb: float = 0.0
    front_mb: float = 0.0
    metrics_kb: float = 0.0
    first: list[float] = field(default_factory=list)
    stored_alone: dict[str, float] = field(default_factory=dict)
    stored_among: dict[str, float] = field(default_factory=dict)


class Scale:
    """The tenants of one database and one broker, and the daemons that come and go."""

    def __init__(self, directory: Path, broker: Broker, db: str, options: Options) -> None:
        self._directory = directory
        self._broker = broker
        self._db = db
        self._options = options
        self._urls: dict[str, str] = {}
        self._figures = Figures(tenants=options.tenants)
        with psycopg.connect(db) as connection:
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
            assert row is not None
            server = psutil.Process(row[0]).parent()
            assert server is not None
        self._server = server.pid

    def measure(self) -> Figures:
        """Measure everything, one after the other."""
        options, figures = self._options, self._figures
        busy = [_tenant(number) for number in range(options.busy)]
        others = [_tenant(number) for number in range(options.busy, options.tenants)]
        with self._running() as daemon:
            self._create(daemon, busy)
            if options.messages:
                figures.stored_alone = self._store(daemon, busy)
            processor, before, began = self._begin(daemon)
            self._create(daemon, others)
            figures.created = len(others) / (time.perf_counter() - began)
            figures.creation = each(processor, before, len(others) / 1e3)
        began = time.perf_counter()
        with self._running() as daemon:
            figures.ready_again = time.perf_counter() - began
            daemon.kill()
        began = time.perf_counter()
        with self._running() as daemon:
            figures.ready_killed = time.perf_counter() - began
            figures.start = {"daemon": psutil.Process(daemon.pid).cpu_times().user}
            time.sleep(SETTLING)
            processor, before, began = self._begin(daemon)
            time.sleep(options.idle_seconds)
            figures.idle = each(processor, before, (time.perf_counter() - began) / 100)
            root = psutil.Process(daemon.pid)
            figures.rss_mb = root.memory_info().rss / 2**20
            figures.front_mb = sum(one.memory_info().rss for one in root.children()) / 2**20
            figures.metrics_kb = daemon.size_of("/metrics") / 1e3
            figures.first = sorted(map(self._wake, _spread(others, options.sleepers)))
            if options.messages:
                figures.stored_among = self._store(daemon, busy)
        return figures

    def _running(self) -> AbstractContextManager[Subject]:
        return running(self._directory, self._broker.settings, self._db)

    def _begin(self, daemon: Subject) -> tuple[Processor, dict[str, float], float]:
        processor = Processor(daemon.pid, self._server, self._broker.pid)
        return processor, processor.used(), time.perf_counter()

    def _create(self, daemon: Subject, tenants: Sequence[str]) -> None:
        def create(tenant: str) -> None:
            made = {"id": tenant, "name": tenant, "topics": [TOPIC]}
            credentials = daemon.call("POST", "/tenants", json=made)["credentials"]
            url = next(value for name, value in credentials.items() if name.endswith("_url"))
            self._urls[tenant] = url

        with ThreadPoolExecutor(self._options.at_once) as pool:
            list(pool.map(create, tenants))

    def _publish(self, tenant: str, count: int) -> float:
        """Publish with the tenant's own client; give the time of the first batch."""
        with closing(client_for(self._urls[tenant], name="bench")) as client:
            client.open()
            began = time.time()
            for start in range(0, count, BATCH):
                numbers = range(start, min(start + BATCH, count))
                messages = [message(number) for number in numbers]
                result = client.publish(names.exchange_name(tenant), messages)
                assert len(result.confirmed) == len(numbers), result.reason
        return began

    def _wake(self, tenant: str) -> float:
        """Publish a tenant's first message; milliseconds until it is committed."""
        began = self._publish(tenant, 1)
        query = f"""
            SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000
            FROM tenantry.{names.partition_table_name(tenant)}"""
        with psycopg.connect(self._db, autocommit=True) as connection:
            rows = list[tuple[float]]()

            def stored() -> bool:
                rows[:] = connection.execute(query.encode()).fetchall()
                return bool(rows)

            wait_until(stored, timeout=60)
        return float(rows[0][0]) - began * 1000

    def _store(self, daemon: Subject, tenants: Sequence[str]) -> dict[str, float]:
        """Let the daemon at a backlog of some tenants; microseconds of a processor a message."""
        self._drain(daemon, tenants, self._options.messages // 5)  # so that all is warm
        return self._drain(daemon, tenants, self._options.messages)

    def _drain(self, daemon: Subject, tenants: Sequence[str], messages: int) -> dict[str, float]:
        share = messages // len(tenants)
        for tenant in tenants:
            daemon.call("POST", f"/tenants/{tenant}/pause")
            self._publish(tenant, share)
        stored, count = daemon.stored(), share * len(tenants)
        processor, before, _ = self._begin(daemon)
        for tenant in tenants:
            daemon.call("POST", f"/tenants/{tenant}/resume")
        wait_until(lambda: daemon.stored() - stored >= count, timeout=600, every=0.2)
        return each(processor, before, count / 1e6)


def _tenant(number: int) -> str:
    return f"t{number:05}"


def message(number: int) -> TenantMessage:
    return TenantMessage(
        routing_key=TOPIC,
        body=body(number),
        message_id=uuid.uuid4().hex,
        content_type="application/json",
        published_at_ms=time.time_ns() // 1_000_000,
    )


def each(processor: Processor, before: dict[str, float], count: float) -> dict[str, float]:
    after = processor.used()
    return {who: (after[who] - before[who]) / count for who in WHO}


def _spread(tenants: Sequence[str], count: int) -> Sequence[str]:
    return tenants[:: max(1, len(tenants) // count)][:count] if count else ()


def main() -> None:
    """Measure many tenants on some brokers, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--broker", choices=list(BROKERS), action="append", help="this one only")
    parser.add_argument("--at-once", type=int, default=8, help="creations under way")
    parser.add_argument("--busy", type=int, default=10, help="tenants that store the messages")
    parser.add_argument("--messages", type=int, default=50_000, help="for what storing costs")
    parser.add_argument("--sleepers", type=int, default=50, help="tenants that are woken")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    options = Options(
        tenants=given.tenants,
        busy=given.busy,
        at_once=given.at_once,
        messages=given.messages,
        sleepers=given.sleepers,
        idle_seconds=given.idle_seconds,
    )
    console, found = Console(stderr=True), dict[str, Figures]()
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for number, (kind, start) in enumerate(BROKERS.items()):
            if kind not in (given.broker or ("embedded", "RabbitMQ")):
                continue
            if (reason := missing(kind)) is not None:
                print(f"without {kind}: {reason}", file=sys.stderr)
                continue
            with console.status(f"{options.tenants:,} tenants on {kind}"):
                home = directory / str(number)
                home.mkdir(mode=0o755)
                found[kind] = _alone(start, home, options)
    if given.json:
        print(json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2))
        return
    for kind, one in found.items():
        show(kind, one)


def _alone(
    start: Callable[[Path], AbstractContextManager[Broker]], home: Path, options: Options
) -> Figures:
    """Measure one broker on services that nobody else uses."""
    postgres = EmbeddedPostgres(home / "postgres")
    try:
        with psycopg.connect(postgres.start(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        postgres.stop()
        db = postgres.start()
        with start(home / "broker") as broker:
            return Scale(home / "daemon", broker, db, options).measure()
    finally:
        postgres.stop()


def show(kind: str, one: Figures) -> None:
    """Print the figures of a broker as a table."""
    table = Table(title=f"{one.tenants:,} tenants, {kind}", show_header=False)
    table.add_row("created a second", f"{one.created:.1f}", f"{by_process(one.creation)} ms each")
    table.add_row("ready after a start, s", f"{one.ready_again:.1f}")
    table.add_row(
        "ready after kill -9, s", f"{one.ready_killed:.1f}", f"daemon {one.start['daemon']:.1f} s"
    )
    table.add_row(
        "idle, % of a core", f"{sum(one.idle.values()):.2f}", f"{by_process(one.idle, 2)} %"
    )
    table.add_row("resident, MB", f"{one.rss_mb:.0f}", f"its front {one.front_mb:.0f} MB")
    table.add_row("/metrics, kB", f"{one.metrics_kb:.0f}")
    if one.first:
        worst = one.first[int(len(one.first) * 0.99)]
        middle = statistics.median(one.first)
        table.add_row("a sleeper's first message, ms", f"{middle:.1f}", f"p99 {worst:.1f}")
    if one.stored_among:
        alone, among = sum(one.stored_alone.values()), sum(one.stored_among.values())
        table.add_row(
            "storing, µs, while alone", f"{alone:.0f}", f"{by_process(one.stored_alone)} µs"
        )
        table.add_row(
            "storing, µs, among all", f"{among:.0f}", f"{by_process(one.stored_among)} µs"
        )
        table.add_row("storing, among all/alone", f"{among / alone:.2f}")
    Console(width=120).print(table)


def by_process(figures: dict[str, float], digits: int = 0) -> str:
    return ", ".join(f"{who} {figures[who]:.{digits}f}" for who in WHO)


if __name__ == "__main__":
    main()
