"""`python -m bench.shares`: how weights share, what turns cost, and what a flood costs others.

Two tenants have a backlog each, one has three times the weight: counted are the rows of each while
both still have messages, first on one node, and then on two, each of which has one of them. Then
one tenant's backlog, and ten tenants', is stored with turns and without, alternately, as other load
on the machine varies: messages a second and processor time a message. Then some quiet tenants
publish now and then, first alone and then while another tenant's backlog is stored, without
consideration, with turns, and with turns and in portions: milliseconds from publishing to the
commit. Last, the same over HTTP, where the other tenant keeps many lists of messages, or single
ones (`--list 1`), under way.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from bench.backlogs import Backlogs, message
from bench.load import wait_until
from bench.plot import Panel, write
from bench.services import Services, as_json, by_process, compared, parser_for
from bench.subject import Subject
from tenantry.domain import names
from tenantry.nodes.membership import place

THREADS = 10
"""Threads that publish for the quiet tenants; each thread has its share of the tenants."""

NO_TURNS = {"TENANTRY_CONSUMER_STORED_AT_ONCE": "0"}
NO_PORTIONS = {"TENANTRY_CONSUMER_BATCH_SIZE_BESIDE_OTHERS": "65535"}
FLOODS = {
    "without turns": NO_TURNS | NO_PORTIONS,
    "with turns": NO_PORTIONS,
    "with turns and portions": {},
}
"""How a flood is stored, and the settings for that; the last way is the default."""

HEAVY, LIGHT = 3, 1
FLOOD = "flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is measured."""

    weights: Mapping[str, int]
    beside_quiet: bool
    messages: int
    rounds: int
    tenants: Sequence[int]
    flood: int
    quiet: int
    rate: float
    seconds: float
    calls: int
    messages_a_call: int
    across: int
    only: Sequence[str]
    ways: Sequence[str]


@dataclass(slots=True, kw_only=True)
class Figures:
    """Rows, messages a second, microseconds a message, milliseconds to the commit."""

    rows: dict[str, int] = field(default_factory=dict)
    rows_rate: float = 0.0
    across: dict[str, int] = field(default_factory=dict)
    across_rate: float = 0.0
    cost: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)
    unloaded: list[float] = field(default_factory=list)
    loaded: dict[str, list[float]] = field(default_factory=dict)
    flood_rate: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By second, in the default way: the flood's rows, and the quiet tenants' latencies in ms."""
    over_http: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """Alone, beside the flood, and there but for the first second, in which all its calls come at
    once: milliseconds of calls, and from a call's begin to the commit."""
    http_flood: dict[str, float] = field(default_factory=dict)


class Shares:
    """Tenants that compete on one database and one broker."""

    def __init__(self, services: Services, options: Options) -> None:
        self._services = services
        self._options = options
        self._backlogs = Backlogs(services)
        self._figures = Figures()

    def measure(self) -> Figures:
        """Measure the wanted parts, one after the other."""
        only = self._options.only
        if "weights" in only:
            with self._services.running() as daemon:
                self._weights(daemon)
        if "across" in only:
            with self._services.running({"TENANTRY_PROCESSES": "2"}) as daemon:
                self._across(daemon)
        if "cost" in only:
            for number in range(self._options.rounds):
                for turns in (True, False) if number % 2 else (False, True):
                    with self._services.running({} if turns else NO_TURNS) as daemon:
                        self._cost(daemon, turns=turns)
        if "flood" in only:
            for way in self._options.ways:
                with self._services.running(FLOODS[way]) as daemon:
                    self._flood(daemon, way)
        if "http" in only:
            with self._services.running() as daemon:
                self._http(daemon)
        return self._figures

    # How weights share.

    def _weights(self, daemon: Subject) -> None:
        count, weights, backlogs = self._options.messages, self._options.weights, self._backlogs
        quiet = [f"w{number:05}" for number in range(self._options.quiet)]
        backlogs.create(daemon, [*weights, *(quiet if self._options.beside_quiet else ())])
        for tenant, weight in weights.items():
            daemon.call("PUT", f"/tenants/{tenant}/limits", json={"weight": weight})
        backlogs.pile_up(daemon, dict.fromkeys(weights, count))
        with self._publishing(quiet) if self._options.beside_quiet else nullcontext():
            found = self._compete(daemon, weights, count)
        self._figures.rows, self._figures.rows_rate = found

    def _compete(
        self, daemon: Subject, weights: Mapping[str, int], count: int
    ) -> tuple[dict[str, int], float]:
        """Return the rows of each while both have messages, and rows a second."""
        backlogs = self._backlogs
        began = daemon.stored_of(weights)
        gone = lambda: _gone(daemon, began)  # noqa: E731
        backlogs.resume(daemon, weights)
        # Both store by then, and both still have messages when the first has stored 90 %.
        wait_until(lambda: min(gone().values()) > count // 50, timeout=60)
        first, at = gone(), time.perf_counter()
        wait_until(lambda: max(gone().values()) > count * 9 // 10, timeout=600)
        last, seconds = gone(), time.perf_counter() - at
        wait_until(lambda: min(gone().values()) >= count, timeout=600)
        rows = {one: last[one] - first[one] for one in weights}
        return rows, sum(rows.values()) / seconds

    def _across(self, daemon: Subject) -> None:
        """Have two tenants compete that belong on different nodes."""
        wait_until(lambda: len(nodes(daemon)) == 2, timeout=60)
        one, other = nodes(daemon)
        alike = dict.fromkeys((one, other), 1.0)
        ids = [f"{who}{number}" for number in range(100) for who in ("heavy", "light")]
        heavy = next(name for name in ids if name[0] == "h" and place(name, alike) == one)
        light = next(name for name in ids if name[0] == "l" and place(name, alike) == other)
        self._backlogs.create(daemon, [heavy, light])
        weights = dict(zip((heavy, light), self._options.weights.values(), strict=True))
        for tenant, weight in weights.items():
            daemon.call("PUT", f"/tenants/{tenant}/limits", json={"weight": weight})
        count = self._options.across
        self._backlogs.pile_up(daemon, dict.fromkeys(weights, count))
        rows, self._figures.across_rate = self._compete(daemon, weights, count)
        self._figures.across = {"heavy": rows[heavy], "light": rows[light]}

    # What turns cost.

    def _cost(self, daemon: Subject, *, turns: bool) -> None:
        for number in self._options.tenants:
            tenants = [f"t{one:05}" for one in range(number)]
            self._backlogs.create(daemon, tenants)
            found = self._backlogs.store(daemon, tenants, self._options.messages)
            key = f"{number} {'with' if turns else 'without'} turns"
            self._figures.cost.setdefault(key, []).append(found)

    # What a flood costs others.

    def _flood(self, daemon: Subject, way: str) -> None:
        options, figures = self._options, self._figures
        quiet = [f"q{number:05}" for number in range(options.quiet)]
        backlogs = self._backlogs
        backlogs.create(daemon, [FLOOD, *quiet])
        backlogs.pile_up(daemon, {FLOOD: options.flood})
        flooded = lambda: daemon.stored_of([FLOOD])[FLOOD]  # noqa: E731
        with self._publishing(quiet):
            time.sleep(3)  # workers have started, caches are filled
            since = time.time()
            time.sleep(options.seconds)
            until = time.time()
            stored = flooded()
            backlogs.resume(daemon, [FLOOD])
            wait_until(lambda: flooded() > stored, timeout=60)
            began = time.time()
            wait_until(lambda: flooded() - stored >= options.flood * 0.95, timeout=600, every=0.1)
            ended = time.time()
        figures.flood_rate[way] = options.flood * 0.95 / (ended - began)
        figures.unloaded = sorted(figures.unloaded + self._latencies(quiet, since, until))
        figures.loaded[way] = self._latencies(quiet, began, ended)
        wait_until(lambda: flooded() - stored >= options.flood, timeout=60)
        if not FLOODS[way]:
            figures.seen = self._seconds(quiet, until - 5, ended)

    @contextmanager
    def _publishing(self, tenants: Sequence[str]) -> Iterator[None]:
        """Let each tenant publish a message now and then."""
        over = threading.Event()
        pause = 1 / self._options.rate

        def go_on(mine: Sequence[str], offset: float) -> None:
            clients = {one: self._backlogs.client(one) for one in mine}
            due = time.monotonic() + offset
            while not over.is_set():
                for tenant, client in clients.items():
                    over.wait(max(0.0, due - time.monotonic()))
                    due += pause / len(clients)
                    result = client.publish(names.exchange_name(tenant), [message()])
                    assert result.confirmed, result.reason
            for client in clients.values():
                client.close()

        threads = [
            threading.Thread(target=go_on, args=(tenants[one::THREADS], pause * one / THREADS**2))
            for one in range(min(THREADS, len(tenants)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
            time.sleep(1)

    def _seconds(
        self, quiet: Sequence[str], since: float, until: float
    ) -> dict[str, list[tuple[float, float]]]:
        seen: dict[str, list[tuple[float, float]]] = {"flood": [], "median": [], "p99": []}
        with psycopg.connect(self._services.db) as connection:
            for second in range(int(until - since)):
                span = (since + second, since + second + 1)
                row = connection.execute(
                    f"SELECT count(*) FROM tenantry.{names.partition_table_name(FLOOD)}"
                    " WHERE created_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)".encode(),
                    span,
                ).fetchone()
                seen["flood"].append((second, 0.0 if row is None else float(row[0])))
                if found := self._latencies(quiet, *span):
                    seen["median"].append((second, statistics.median(found)))
                    seen["p99"].append((second, _p99(found)))
        return seen

    # The same over HTTP.

    def _http(self, daemon: Subject) -> None:
        options, figures = self._options, self._figures
        quiet = [f"q{number:05}" for number in range(options.quiet)]
        self._backlogs.create(daemon, [FLOOD, *quiet])
        port = daemon.call("GET", "/info")["server"]["port"]
        sender = [sys.executable, "-m", "bench.http_sender", str(port)]
        calling = subprocess.Popen(
            [*sender, "quiet", str(options.rate), *quiet],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(3)  # connections are open, caches are filled
        since = time.time()
        time.sleep(options.seconds)
        began = time.time()
        counts = [str(one) for one in (options.calls, options.messages_a_call, options.flood)]
        flood = subprocess.run(
            [*sender, "flood", FLOOD, *counts], stdout=subprocess.PIPE, text=True, check=True
        )
        ended = time.time()
        called = json.loads(calling.communicate()[0])
        time.sleep(1)
        told = json.loads(flood.stdout)
        figures.http_flood = {
            "rate": options.flood / told["seconds"],
            **{status: float(count) for status, count in told["statuses"].items()},
        }
        for name, first, last in (
            ("alone", since, began),
            ("beside the flood", began, ended),
            ("after its first second", began + 1, ended),
        ):
            within = [one for one in called if first <= one[0] < last]
            figures.over_http[name] = (
                sorted(seconds * 1000 for _, seconds, made in within if made is not None),
                self._committed({made: at for at, _, made in within if made is not None}),
            )

    def _committed(self, begun: dict[str, float]) -> list[float]:
        """Return the milliseconds from when messages' calls began, by id, to their commits."""
        with psycopg.connect(self._services.db) as connection:
            rows = connection.execute(
                "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))"
                " FROM public.messages WHERE id = ANY(%s)",
                (list(begun),),
            ).fetchall()
        return sorted((float(at) - begun[made]) * 1000 for made, at in rows)

    def _latencies(self, tenants: Sequence[str], since: float, until: float) -> list[float]:
        found: list[float] = []
        with psycopg.connect(self._services.db) as connection:
            for tenant in tenants:
                rows = connection.execute(
                    "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - published_at)"
                    f" * 1000 FROM tenantry.{names.partition_table_name(tenant)}"
                    " WHERE published_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)".encode(),
                    (since, until),
                ).fetchall()
                found += [float(row[0]) for row in rows]
        return sorted(found)


def main() -> None:
    """Measure on some brokers, and print a table."""
    parts = ("weights", "across", "cost", "flood", "http")
    parser = parser_for("shares", __doc__)
    parser.add_argument("--only", choices=parts, action="append", help="this part only")
    parser.add_argument("--weights", type=int, nargs=2, default=(HEAVY, LIGHT), help="of the two")
    parser.add_argument(
        "--beside-quiet", action="store_true", help="quiet tenants publish beside those two"
    )
    parser.add_argument("--messages", type=int, default=60_000, help="a backlog")
    parser.add_argument(
        "--across", type=int, default=800_000, help="a backlog of the two on different nodes"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of what turns cost")
    parser.add_argument("--tenants", type=int, action="append", help="so many, of what turns cost")
    parser.add_argument("--flood", type=int, default=200_000, help="messages of the flood")
    parser.add_argument(
        "--way", choices=FLOODS, action="append", help="store the flood in this way only"
    )
    parser.add_argument("--quiet", type=int, default=50, help="tenants beside it")
    parser.add_argument("--rate", type=float, default=2.0, help="messages/s of each of those")
    parser.add_argument("--seconds", type=float, default=30.0, help="without the flood")
    parser.add_argument(
        "--calls", type=int, default=100, help="lists that are under way at once, over HTTP"
    )
    parser.add_argument("--list", type=int, default=200, help="messages of each of those lists")
    parser.add_argument("--plot", type=Path, help="draw the flood, on the last broker, as SVG")
    given = parser.parse_args()
    wanted = Options(
        weights=dict(zip(("heavy", "light"), given.weights, strict=True)),
        beside_quiet=given.beside_quiet,
        messages=given.messages,
        across=given.across,
        rounds=given.rounds,
        tenants=given.tenants or (1, 10),
        flood=given.flood,
        quiet=given.quiet,
        rate=given.rate,
        seconds=given.seconds,
        calls=given.calls,
        messages_a_call=given.list,
        only=given.only or parts,
        ways=given.way or list(FLOODS),
    )
    found = compared(given, lambda services: Shares(services, wanted).measure())
    if given.plot is not None:
        draw(given.plot, *list(found.items())[-1])
    if given.json:
        print(as_json(found))
        return
    for kind, one in found.items():
        show(kind, one, wanted.weights)


def nodes(daemon: Subject) -> list[str]:
    """Name the active nodes."""
    shown = daemon.call("GET", "/nodes")["data"]
    return [one["name"] for one in shown if one["state"] == "active"]


def _gone(daemon: Subject, began: Mapping[str, int]) -> dict[str, int]:
    now = daemon.stored_of(began)
    return {one: now[one] - began[one] for one in began}


def draw(path: Path, kind: str, one: Figures) -> None:
    """Draw a flood, and the latencies of the quiet tenants beside it."""
    panels = [
        Panel(title="messages of the flood stored a second", curves={"flood": one.seen["flood"]}),
        Panel(
            title="ms from publishing to commit, quiet tenants",
            curves={name: one.seen[name] for name in ("median", "p99")},
        ),
    ]
    write(path, f"A flood beside quiet tenants, {kind}", panels)


def show(kind: str, one: Figures, weights: Mapping[str, int]) -> None:
    """Print the figures of a broker as a table."""
    table = Table(title=f"shares of tenants, {kind}", show_header=False)
    wanted = " : ".join(str(weight) for weight in weights.values())
    for rows, rate, where in (
        (one.rows, one.rows_rate, ""),
        (one.across, one.across_rate, ", each on a node of its own"),
    ):
        if rows:
            ratio = f"{rows['heavy'] / rows['light']:.2f} : 1"
            counts = ", ".join(f"{who} {count:,} rows" for who, count in rows.items())
            table.add_row(f"weights {wanted}{where}", ratio, f"{counts}, {rate:,.0f}/s")
    for key, runs in one.cost.items():
        rate = statistics.median(rate for rate, _ in runs)
        used = {who: statistics.median(cost[who] for _, cost in runs) for who in runs[0][1]}
        table.add_row(
            f"storing, tenants: {key}",
            f"{rate:,.0f}/s, {sum(used.values()):.1f} µs",
            by_process(used, 1),
        )
    for label, found in (("alone", one.unloaded), *one.loaded.items()):
        if found:
            told = f"median {statistics.median(found):.1f} ms, p99 {_p99(found):.1f} ms"
            beside = f", the flood {one.flood_rate[label]:,.0f}/s" if label in one.loaded else ""
            table.add_row(f"quiet tenants, {label}", told, f"{len(found):,} messages{beside}")
    for label, found in one.loaded.items():
        if found and one.unloaded:
            ratio = _p99(found) / _p99(one.unloaded)
            table.add_row(f"p99 beside the flood, {label}", f"{ratio:.1f} times")
    for name, (calls, commits) in one.over_http.items():
        table.add_row(
            f"quiet over HTTP, {name}",
            f"median {statistics.median(commits):.1f} ms, p99 {_p99(commits):.1f} ms",
            f"the call {statistics.median(calls):.1f}, {_p99(calls):.1f} ms; {len(calls):,} calls",
        )
    if one.over_http:
        alone, beside, _ = (_p99(commits) for _, commits in one.over_http.values())
        flood = ", ".join(
            f"{name} {count:,.0f}{'/s' if name == 'rate' else ''}"
            for name, count in one.http_flood.items()
        )
        table.add_row("p99 beside the flood over HTTP", f"{beside / alone:.1f} times", flood)
    Console(width=120).print(table)


def _p99(found: Sequence[float]) -> float:
    return found[int(len(found) * 0.99)]


if __name__ == "__main__":
    main()
