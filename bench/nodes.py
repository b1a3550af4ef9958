"""`python -m bench.nodes`: what several processes cost beside one, and how long a hand-over takes.

One process stores a backlog, and then several processes store the same backlog of the same tenants;
the figure is processor time a message, by process, the parent and its front included. Then all
tenants publish at a steady rate and one node is drained: a tenant's longest time between two
commits is the pause of its hand-over. Last, one process is killed, and the benchmark measures how
long it takes until each of its tenants stores again on another node.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field

import psycopg
from rich.console import Console
from rich.table import Table

from bench.backlogs import Backlogs, message
from bench.load import wait_until
from bench.services import Services, as_json, by_process, compared, parser_for
from bench.subject import Subject
from tenantry.domain import names
from tenantry.nodes.membership import place

RATE = 20.0
"""Messages a second that each tenant publishes while a node is drained or killed."""

STEADY = 6.0
"""Seconds of steady publishing before and after a node is drained or killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    processes: int
    tenants: int
    messages: int


@dataclass(slots=True, kw_only=True)
class Figures:
    """Microseconds of processor time a message, messages a second, seconds of pauses."""

    processes: int
    one: dict[str, float] = field(default_factory=dict)
    several: dict[str, float] = field(default_factory=dict)
    rate_one: float = 0.0
    rate_several: float = 0.0
    handed_over: int = 0
    pauses: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    taken_over: int = 0
    takeovers: list[float] = field(default_factory=list)
    fifth: float = 0.0
    between: int = 0


class Nodes:
    """The tenants of one database and one broker, with one process and with several."""

    def __init__(self, services: Services, options: Options) -> None:
        self._services = services
        self._options = options
        self._backlogs = Backlogs(services)
        self._figures = Figures(processes=options.processes)

    def measure(self) -> Figures:
        """Measure everything, one after the other."""
        figures, backlogs, messages = self._figures, self._backlogs, self._options.messages
        tenants = [f"t{number:05}" for number in range(self._options.tenants)]
        with self._running(1) as daemon:
            backlogs.create(daemon, tenants)
            figures.rate_one, figures.one = backlogs.store(daemon, tenants, messages)
        with self._running(self._options.processes) as daemon:
            self._wait_spread(self._options.processes)
            figures.rate_several, figures.several = backlogs.store(daemon, tenants, messages)
            self._drain_one(daemon)
            self._kill_one()
        figures.fifth, figures.between = placement()
        return figures

    def _running(self, processes: int) -> AbstractContextManager[Subject]:
        return self._services.running({"TENANTRY_PROCESSES": str(processes)})

    def _owners(self) -> dict[str, str | None]:
        with psycopg.connect(self._services.db) as connection:
            rows = connection.execute("SELECT tenant_id, node FROM tenantry.owners").fetchall()
        return dict(rows)

    def _wait_spread(self, processes: int) -> None:
        def spread() -> bool:
            owners = self._owners()
            there = {node for node in owners.values() if node is not None}
            weights = dict.fromkeys(there, 1.0)
            right = all(node == place(tenant, weights) for tenant, node in owners.items())
            return len(there) == processes and right

        wait_until(spread, timeout=120, every=0.2)

    # What a change of its node costs a tenant.

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """Let every tenant publish, one message at a time."""
        over = threading.Event()

        def go_on(tenant: str) -> None:
            with closing(self._backlogs.client(tenant)) as client:
                while not over.wait(1 / RATE):
                    client.publish(names.exchange_name(tenant), [message()])

        threads = [
            threading.Thread(target=go_on, args=(tenant,)) for tenant in self._backlogs.tenants
        ]
        for thread in threads:
            thread.start()
        try:
            time.sleep(STEADY)
            yield
            time.sleep(STEADY)
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _gaps(self, tenants: Sequence[str], since: float) -> list[float]:
        """Return each tenant's longest time between two of its rows, in seconds, sorted."""
        found = []
        with psycopg.connect(self._services.db) as connection:
            for tenant in tenants:
                query = f"""
                    SELECT max(gap) FROM (
                        SELECT extract(epoch FROM created_at - lag(created_at)
                                       OVER (ORDER BY position))::float8 AS gap
                        FROM tenantry.{names.partition_table_name(tenant)}
                        WHERE created_at >= to_timestamp({since})) AS gaps"""
                row = connection.execute(query.encode()).fetchone()
                found.append(0.0 if row is None or row[0] is None else float(row[0]))
        return sorted(found)

    def _drain_one(self, daemon: Subject) -> None:
        before = self._owners()
        node, _ = Counter(before.values()).most_common(1)[0]
        moved = [tenant for tenant, owner in before.items() if owner == node]
        since = time.time() + 1
        with self._steady():
            daemon.call("POST", f"/nodes/{node}/drain")
            wait_until(lambda: node not in self._owners().values(), timeout=120, every=0.1)
        self._figures.handed_over = len(moved)
        self._figures.pauses = self._gaps(moved, since)
        self._figures.usual = self._gaps([one for one in before if one not in moved], since)
        daemon.call("POST", f"/nodes/{node}/undrain")
        self._wait_spread(self._options.processes)

    def _kill_one(self) -> None:
        before = self._owners()
        with psycopg.connect(self._services.db) as connection:
            query = "SELECT substr(scope, 6), pid FROM tenantry.terms WHERE held AND slot > 0"
            processes = dict(connection.execute(query).fetchall())
        node, _ = Counter(before.values()).most_common(1)[0]
        lost = [tenant for tenant, owner in before.items() if owner == node]
        since = time.time() + 1
        with self._steady():
            os.kill(processes[node], signal.SIGKILL)
            time.sleep(15)
        self._figures.taken_over = len(lost)
        self._figures.takeovers = self._gaps(lost, since)


def placement(tenants: int = 20_000) -> tuple[float, int]:
    """Add a fifth node to four; return the share of tenants that move, and the moves among four."""
    four = dict.fromkeys("abcd", 1.0)
    five = {**four, "e": 1.0}
    placed = [(place(f"t{one}", four), place(f"t{one}", five)) for one in range(tenants)]
    moved = [after for before, after in placed if before != after]
    return len(moved) / tenants, sum(after != "e" for after in moved)


def main() -> None:
    """Measure on some brokers, and print a table."""
    parser = parser_for("nodes", __doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tenants", type=int, default=24)
    parser.add_argument("--messages", type=int, default=60_000, help="for what storing costs")
    given = parser.parse_args()
    wanted = Options(processes=given.processes, tenants=given.tenants, messages=given.messages)
    what = f"{wanted.processes} processes on "
    found = compared(given, lambda services: Nodes(services, wanted).measure(), what)
    if given.json:
        print(as_json(found))
        return
    for kind, one in found.items():
        show(kind, one)


def show(kind: str, one: Figures) -> None:
    """Print the figures of a broker as a table."""
    table = Table(title=f"{one.processes} processes beside one, {kind}", show_header=False)
    for label, figures, rate in (
        ("one process", one.one, one.rate_one),
        (f"{one.processes} processes", one.several, one.rate_several),
    ):
        told = by_process(figures)
        table.add_row(
            f"storing, {label}", f"{sum(figures.values()):.0f} µs", told, f"{rate:,.0f}/s"
        )
    for who in one.one:
        if one.one[who]:
            table.add_row(f"ratio, {who}", f"{one.several[who] / one.one[who]:.2f}")
    for label, count, pauses in (
        ("handed over", one.handed_over, one.pauses),
        ("meanwhile, the others", len(one.usual), one.usual),
        ("taken over after SIGKILL", one.taken_over, one.takeovers),
    ):
        if pauses:
            middle = pauses[len(pauses) // 2]
            told = f"longest pause {pauses[-1]:.2f} s, median {middle:.2f} s"
            table.add_row(label, f"{count} tenants", told)
    moved = f"{one.fifth:.1%} of the tenants move, {one.between} between the four"
    table.add_row("a fifth node", moved)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
