"""`python -m bench.page`: what the operator's page costs with many tenants, all of them active.

Tenants are created over the API, several at once, and some of them store messages. Then pages are
requested over TCP, as browsers do, one after the other.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field

import httpx
from rich.console import Console
from rich.table import Table

from bench.backlogs import Backlogs
from bench.services import Services, as_json, compared, parser_for

PAGES = {
    "overview": "/ui",
    "overview, by messages/s": "/ui?sort=-rate",
    "overview, by what waits": "/ui?sort=-pending",
    "overview, a search": "/ui?search=t00&sort=-dead_lettered",
    "overview, figures anew": "/ui/figures",
    "a tenant": "/ui/tenants/t00000",
    "its journal": "/ui/tenants/t00000/journal",
    "nodes": "/ui/nodes",
    "actors": "/ui/actors",
}
WARMING = 3


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a page costs: milliseconds until it has arrived and of processor time; its kilobytes."""

    median_ms: float
    worst_ms: float
    daemon_ms: float
    database_ms: float
    kb: float


@dataclass(slots=True, kw_only=True)
class Figures:
    """The costs, by page."""

    tenants: int
    active: int = 0
    pages: dict[str, Cost] = field(default_factory=dict)


def measure(services: Services, tenants: int, busy: int, messages: int, times: int) -> Figures:
    """Create tenants and request each page `times` times."""
    backlogs, figures = Backlogs(services), Figures(tenants=tenants)
    names = [f"t{number:05}" for number in range(tenants)]
    with services.running() as daemon:
        backlogs.create(daemon, names, at_once=8)
        if messages:
            backlogs.store(daemon, names[:busy], messages)
        figures.active = daemon.call("GET", "/overview")["states"].get("active", 0)
        processor = services.processor(daemon)
        url = f"http://127.0.0.1:{daemon.call('GET', '/info')['server']['port']}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for name, path in PAGES.items():
                for _ in range(WARMING):
                    client.get(path).raise_for_status()
                taken, before = [], processor.used()
                for _ in range(times):
                    began = time.perf_counter()
                    answer = client.get(path).raise_for_status()
                    taken.append((time.perf_counter() - began) * 1000)
                used = processor.each(before, times / 1000)
                figures.pages[name] = Cost(
                    median_ms=statistics.median(taken),
                    worst_ms=max(taken),
                    daemon_ms=used["daemon"],
                    database_ms=used["database"],
                    kb=len(answer.content) / 1000,
                )
    return figures


def main() -> None:
    """Measure the page on some brokers, and print a table."""
    parser = parser_for("page", __doc__, kinds=("embedded",))
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--busy", type=int, default=10, help="tenants that store messages")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=20, help="each page is asked for")
    given = parser.parse_args()
    found = compared(
        given,
        lambda services: measure(services, given.tenants, given.busy, given.messages, given.times),
        f"{given.tenants:,} tenants on ",
    )
    if given.json:
        print(as_json(found))
        return
    for kind, one in found.items():
        show(kind, one)


def show(kind: str, one: Figures) -> None:
    """Print the figures of a broker as a table."""
    table = Table(
        "page", "ms", "worst", "of the daemon's processor", "of the database's", "kB",
        title=f"{one.tenants:,} tenants, {one.active:,} of them active, {kind}",
    )  # fmt: skip
    for name, cost in one.pages.items():
        table.add_row(name, *(f"{value:.1f}" for value in asdict(cost).values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
