"""`python -m bench.tenants`: what many tenants cost in one daemon, nearly all of them asleep.

Tenants are created over the API, several at once; the daemon is started again, in order and after
a kill; then it idles, and single messages wake tenants that have never had one. Storing for some of
the tenants is measured twice: while there are only these, and among all the others. The figure that
counts on a busy machine is processor time, by process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import psutil  # type: ignore[import-untyped]
import psycopg
from rich.console import Console
from rich.table import Table

from bench.backlogs import Backlogs, message
from bench.load import wait_until
from bench.services import Services, as_json, by_process, compared, parser_for
from tenantry.domain import names

SETTLING = 30.0
"""Seconds before idling is measured: by then workers have ended and caches are filled."""


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
    """Results: processor time of a creation in ms, of a message in µs, idling in % of a core."""

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
    """The tenants of one database and one broker, and the daemons started on them."""

    def __init__(self, services: Services, options: Options) -> None:
        self._services = services
        self._options = options
        self._backlogs = Backlogs(services)
        self._figures = Figures(tenants=options.tenants)

    def measure(self) -> Figures:
        """Measure everything, one after the other."""
        options, figures = self._options, self._figures
        services, backlogs = self._services, self._backlogs
        busy = [_tenant(number) for number in range(options.busy)]
        others = [_tenant(number) for number in range(options.busy, options.tenants)]
        with services.running() as daemon:
            backlogs.create(daemon, busy, at_once=options.at_once)
            if options.messages:
                _, figures.stored_alone = backlogs.store(daemon, busy, options.messages)
            processor = services.processor(daemon)
            before, began = processor.used(), time.perf_counter()
            backlogs.create(daemon, others, at_once=options.at_once)
            figures.created = len(others) / (time.perf_counter() - began)
            figures.creation = processor.each(before, len(others) / 1e3)
        began = time.perf_counter()
        with services.running() as daemon:
            figures.ready_again = time.perf_counter() - began
            daemon.kill()
        began = time.perf_counter()
        with services.running() as daemon:
            figures.ready_killed = time.perf_counter() - began
            figures.start = {"daemon": psutil.Process(daemon.pid).cpu_times().user}
            time.sleep(SETTLING)
            processor = services.processor(daemon)
            before, began = processor.used(), time.perf_counter()
            time.sleep(options.idle_seconds)
            figures.idle = processor.each(before, (time.perf_counter() - began) / 100)
            root = psutil.Process(daemon.pid)
            figures.rss_mb = root.memory_info().rss / 2**20
            figures.front_mb = sum(one.memory_info().rss for one in root.children()) / 2**20
            figures.metrics_kb = daemon.size_of("/metrics") / 1e3
            figures.first = sorted(map(self._wake, _spread(others, options.sleepers)))
            if options.messages:
                _, figures.stored_among = backlogs.store(daemon, busy, options.messages)
        return figures

    def _wake(self, tenant: str) -> float:
        """Publish a tenant's first message; return the milliseconds until it is committed."""
        with closing(self._backlogs.client(tenant)) as client:
            began = time.time()
            result = client.publish(names.exchange_name(tenant), [message()])
        assert result.confirmed, result.reason
        query = f"""
            SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000
            FROM tenantry.{names.partition_table_name(tenant)}"""
        with psycopg.connect(self._services.db, autocommit=True) as connection:
            rows = list[tuple[float]]()

            def stored() -> bool:
                rows[:] = connection.execute(query.encode()).fetchall()
                return bool(rows)

            wait_until(stored, timeout=60)
        return float(rows[0][0]) - began * 1000


def _tenant(number: int) -> str:
    return f"t{number:05}"


def _spread(tenants: Sequence[str], count: int) -> Sequence[str]:
    return tenants[:: max(1, len(tenants) // count)][:count] if count else ()


def main() -> None:
    """Measure many tenants on some brokers, and print a table."""
    parser = parser_for("tenants", __doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8, help="creations under way")
    parser.add_argument("--busy", type=int, default=10, help="tenants that store the messages")
    parser.add_argument("--messages", type=int, default=50_000, help="for what storing costs")
    parser.add_argument("--sleepers", type=int, default=50, help="tenants that are woken")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    given = parser.parse_args()
    wanted = Options(
        tenants=given.tenants,
        busy=given.busy,
        at_once=given.at_once,
        messages=given.messages,
        sleepers=given.sleepers,
        idle_seconds=given.idle_seconds,
    )
    what = f"{wanted.tenants:,} tenants on "
    found = compared(given, lambda services: Scale(services, wanted).measure(), what)
    if given.json:
        print(as_json(found))
        return
    for kind, one in found.items():
        show(kind, one)


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


if __name__ == "__main__":
    main()
