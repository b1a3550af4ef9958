"""`python -m bench`: everything in one go, on services of its own, with the ratios.

Two tables: messages from the broker to the database, and the HTTP API under load.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import psycopg
from rich.console import Console
from rich.table import Table

from bench import api, api_table, api_wrk, peers, subject
from tenantry.database.embedded import EmbeddedPostgres
from tests.rabbitmq_node import PrivateNode

STEADY_RATE = 1000


def main() -> None:
    """Run the benchmarks and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000, help="per throughput figure")
    parser.add_argument("--plain-messages", type=int, default=5_000, help="for the plain handler")
    parser.add_argument(
        "--backlog", type=int, default=1_000_000, help="for the memory figure; 0: skip"
    )
    parser.add_argument("--steady-seconds", type=int, default=15, help="for the latency figure")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--only", choices=["messages", "api"], help="one of the two tables only")
    parser.add_argument("--api-seconds", type=float, default=5.0, help="a run of wrk")
    parser.add_argument(
        "--api-backlog", type=int, default=500_000, help="stored while pages are read; 0: skip"
    )
    parser.add_argument(
        "--deep-rows", type=int, default=10_000_000, help="of the tenant paged through; 0: skip"
    )
    options = parser.parse_args()
    if options.only != "messages" and (problem := api_wrk.missing()):
        if options.only == "api":
            parser.error(problem)
        print(f"without the HTTP API: {problem}", file=sys.stderr)
        options.only = "messages"
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        figures = measure(Path(name), options)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    if options.only != "api":
        show(figures)
    if options.only != "messages":
        api_table.show(figures)


def measure(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Measure the requested parts, one after the other."""
    directory.chmod(0o755)
    console = Console(stderr=True)
    node = PrivateNode(directory / "rabbitmq")
    postgres = EmbeddedPostgres(directory / "postgres")
    figures: dict[str, float] = {}
    try:
        with console.status("starting RabbitMQ and PostgreSQL"):
            node.start()
            _enable_commit_times(postgres)
            db = postgres.start()
        if options.only != "api":
            figures |= _measure_messages(directory, options, console, node, db)
        if options.only != "messages":
            plan = api.Plan(
                seconds=options.api_seconds,
                deep_rows=options.deep_rows,
                backlog=options.api_backlog,
            )
            with (
                subject.running(directory / "api", _rabbit(node), db) as daemon,
                console.status("the HTTP API"),
            ):
                measured = api.Api(daemon, db, node.url, directory / "api")
                figures |= api.measure(measured, plan)
    finally:
        node.stop()
        postgres.stop()
    return figures


def _measure_messages(
    directory: Path, options: argparse.Namespace, console: Console, node: PrivateNode, db: str
) -> dict[str, float]:
    figures: dict[str, float] = {}
    with console.status("pika alone"):
        figures["pika_alone"] = peers.pika_alone(node.url, options.messages)
    with console.status("a plain handler"):
        figures["plain_handler"] = peers.plain_handler(node.url, db, options.plain_messages)
    with subject.running(directory / "one", _rabbit(node), db) as daemon:
        with console.status("the daemon, one tenant"):
            figures["daemon_1"] = daemon.drain_backlog(1, options.messages)
        with console.status("the daemon, ten tenants"):
            figures["daemon_10"] = daemon.drain_backlog(10, options.messages)
        with console.status(f"the daemon at {STEADY_RATE} messages/s"):
            latencies = daemon.latencies(STEADY_RATE, options.steady_seconds)
        figures["latency_median_ms"] = statistics.median(latencies)
        figures["latency_p99_ms"] = latencies[int(len(latencies) * 0.99)]
    if options.backlog:
        with (
            subject.running(directory / "two", _rabbit(node), db) as daemon,
            console.status(f"the daemon before {options.backlog:,} messages"),
        ):
            figures["daemon_backlog"] = daemon.drain_backlog(3, options.backlog)
            figures["peak_rss_mb"] = daemon.peak_rss_mb()
    return figures


def _rabbit(node: PrivateNode) -> dict[str, str]:
    return {"RABBITMQ_URL": node.url, "RABBITMQ_MANAGEMENT_URL": node.management_url}


def _enable_commit_times(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    postgres.stop()


def show(figures: dict[str, float]) -> None:
    """Print the figures as tables."""
    alone, plain = figures["pika_alone"], figures["plain_handler"]
    table = Table(title=f"250-byte JSON, durable quorum queue, fsync on ({platform.machine()})")
    for heading in ("", "messages/s", "of pika alone", "times the plain handler"):
        table.add_column(heading, justify="left" if not heading else "right")
    for key, label in (
        ("pika_alone", "(a) pika alone: consume and ack in batches"),
        ("daemon_1", "(b) the daemon, broker to committed row to ack, 1 tenant"),
        ("daemon_10", "(b) the same, 10 tenants"),
        ("daemon_backlog", "(b) the same, 3 tenants, the whole backlog"),
        ("plain_handler", "(c) a plain handler: insert, commit, ack one by one"),
    ):
        if key in figures:
            rate = figures[key]
            table.add_row(label, f"{rate:,.0f}", f"{rate / alone:.2f}", f"{rate / plain:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"published to committed at {STEADY_RATE} messages/s:"
        f" median {figures['latency_median_ms']:.1f} ms, p99 {figures['latency_p99_ms']:.1f} ms"
    )
    if "peak_rss_mb" in figures:
        console.print(f"largest resident set before the backlog: {figures['peak_rss_mb']:.0f} MB")


if __name__ == "__main__":
    main()
