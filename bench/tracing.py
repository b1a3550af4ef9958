"""`python -m bench.tracing`: what tracing costs the daemon, in processor time a message.

The same messages wait in a tenant's queue, and one daemon after the other stores them, in turns:
without an endpoint, and with one. `plain` messages have no trace, of `marked` ones each has, and
one in a hundred is recorded; of `all` each one is. What tracing costs where it is off is measured
by itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from bench.load import body, wait_until
from bench.subject import Subject, running
from tenantry.broker.port import Outgoing
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.domain import names
from tenantry.tracing import Tracer
from tests.collector import collector
from tests.rabbitmq_node import PrivateNode

TENANT: Final = "bench"
BATCH: Final = 500


class Way(NamedTuple):
    """What is published, and whether spans are collected."""

    messages: str
    traced: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.messages}, {'on' if self.traced else 'off'}"


WAYS: Final = (
    Way("plain", False),
    Way("plain", True),
    Way("marked", False),
    Way("marked", True),
    Way("all", True),
)


def headers(messages: str, number: int) -> Mapping[str, object] | None:
    """Give the headers of one of the messages."""
    if messages == "plain":
        return None
    sampled = messages == "all" or number % 100 == 0
    return {"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-{sampled:02x}"}


def fill(url: str, messages: str, count: int, run: str) -> None:
    """Have messages wait in the tenant's queue."""
    publishing = RabbitPublishing(url)
    thread = threading.Thread(target=publishing.run)
    thread.start()
    try:
        for start in range(0, count, BATCH):
            batch = [
                Outgoing(
                    exchange=names.exchange_name(TENANT),
                    routing_key="default",
                    body=body(number),
                    message_id=f"{run}-{number}",
                    content_type="application/json",
                    headers=headers(messages, number),
                )
                for number in range(start, min(start + BATCH, count))
            ]
            publishing.publish(batch, timeout=60)
    finally:
        publishing.stop()
        thread.join()


def drain(daemon: Subject, url: str, way: Way, count: int, run: str) -> float:
    """Let the daemon store what waits; microseconds of its processor time a message."""
    daemon.call("POST", f"/tenants/{TENANT}/pause")
    fill(url, way.messages, count, run)
    process, before = psutil.Process(daemon.pid), daemon.stored()
    began = sum(process.cpu_times()[:2])
    daemon.call("POST", f"/tenants/{TENANT}/resume")
    wait_until(lambda: daemon.stored() - before >= count, timeout=300, every=0.1)
    return (sum(process.cpu_times()[:2]) - began) / count * 1e6


def off() -> float:
    """Give the nanoseconds of what is called for a batch where nothing is traced."""
    tracer, rounds = Tracer(), 200_000
    began = time.process_time_ns()
    for _ in range(rounds):
        with tracer.processing("acme", []) as span, tracer.storing():
            assert not span.followed
    return (time.process_time_ns() - began) / rounds


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tracing", description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000, help="a drain")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name, collector() as collecting:
        directory = Path(name)
        directory.chmod(0o755)
        node, postgres = PrivateNode(directory / "rabbitmq"), EmbeddedPostgres(directory / "db")
        try:
            node.start()
            db = postgres.start()
            broker = {"RABBITMQ_URL": node.url, "RABBITMQ_MANAGEMENT_URL": node.management_url}
            for number in range(options.rounds):
                for traced in (False, True):
                    told = {"TENANTRY_TRACING_SAMPLE_RATIO": "0.01"}
                    told["TENANTRY_TRACING_ENDPOINT"] = collecting.url if traced else ""
                    with running(directory / "daemon", broker | told, db) as daemon:
                        if not number and not traced:
                            daemon.create(TENANT)
                        drain(daemon, node.url, WAYS[2], BATCH * 4, f"{number}-{traced}-first")
                        for way in (one for one in WAYS if one.traced is traced):
                            run = f"{number}-{way.name}"
                            spent = drain(daemon, node.url, way, options.messages, run)
                            found[way].append(spent)
        finally:
            node.stop()
            postgres.stop()
        spans = len(collecting.spans())
    print("| messages, tracing | µs a message, median of all | least | beside the same off |")
    print("|---|---:|---:|---:|")
    for way, values in found.items():
        median, least = statistics.median(values), min(values)
        same = found.get(Way("marked" if way.messages == "all" else way.messages, False), values)
        change = median / statistics.median(same) - 1
        print(f"| {way.name} | {median:.1f} | {least:.1f} | {change:+.1%} |")
    print(f"{spans} spans were collected; off, a batch's calls take {off():.0f} ns")


if __name__ == "__main__":
    main()
