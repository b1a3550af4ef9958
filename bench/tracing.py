"""`python -m bench.tracing`: what tracing costs the daemon, in processor time a message.

Two daemons on one RabbitMQ and one PostgreSQL, each with a tenant of its own: one sends spans to an
endpoint, the other does not. The same messages wait for both, and the daemons store them in turns,
so that other load on the machine affects both. `plain` messages have no trace; all `marked`
messages have one, and one in a hundred is recorded; `all` messages are recorded. On a busy machine
two daemons differ by more than tracing costs, so tracing a batch is measured by itself as well.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bench.load import body, wait_until
from bench.subject import Subject, running
from tenantry.broker.port import Outgoing
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.domain import names
from tenantry.messages.port import Incoming
from tenantry.tracing import Tracer
from tenantry.tracing.exporting import ExportingTracer, provider_of
from tenantry.tracing.sending import SENT_AT_ONCE
from tests.collector import collector
from tests.rabbitmq_node import PrivateNode
from tests.services_rabbitmq import virtual_host_of

BATCH: Final = 500
BATCHES: Final = 400
TRIES: Final = 9
KINDS: Final = ("plain", "marked", "all")


def headers(messages: str, number: int) -> Mapping[str, object] | None:
    """Return the headers of message `number`."""
    if messages == "plain":
        return None
    sampled = messages == "all" or number % 100 == 0
    return {"traceparent": f"00-{number + 1:032x}-{number + 1:016x}-{sampled:02x}"}


def fill(url: str, tenant: str, messages: str, count: int, run: str) -> None:
    """Publish messages into a tenant's queue."""
    publishing = RabbitPublishing(url)
    thread = threading.Thread(target=publishing.run)
    thread.start()
    try:
        for start in range(0, count, BATCH):
            batch = [
                Outgoing(
                    exchange=names.exchange_name(tenant),
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


class Side:
    """A daemon, and the tenant whose messages it stores."""

    def __init__(self, daemon: Subject, url: str, tenant: str) -> None:
        self._daemon = daemon
        self._url = url
        self._tenant = tenant
        daemon.create(tenant)

    def fill(self, messages: str, count: int, run: str) -> None:
        """Pause the tenant and fill its queue."""
        self._daemon.call("POST", f"/tenants/{self._tenant}/pause")
        fill(self._url, self._tenant, messages, count, run)

    def drain(self, count: int) -> float:
        """Let the daemon store the messages; its processor time in microseconds a message."""
        before, began = self._daemon.stored(), self._spent()
        self._daemon.call("POST", f"/tenants/{self._tenant}/resume")
        wait_until(lambda: self._daemon.stored() - before >= count, timeout=300, every=0.05)
        return (self._spent() - began) / count / 1000

    def _spent(self) -> int:
        """Return the daemon's processor time in nanoseconds, ended threads included."""
        # The clock of a process on Linux, as clock_getcpuclockid() computes it.
        return time.clock_gettime_ns(~self._daemon.pid << 3 | 2)


def own_cost(kind: str, endpoint: str) -> float:
    """Return the microseconds that tracing itself takes for a batch: its calls, and sending.

    It is the least of several tries, each of hundreds of batches: other load on the machine only
    makes a try slower.
    """
    batch = [
        Incoming(f"{number}", "default", 0, b"{}", None, headers(kind, number), None)
        for number in range(BATCH)
    ]
    kept = InMemorySpanExporter()
    provider = provider_of("bench", 0.01)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer, exporter = ExportingTracer(provider, system="rabbitmq"), OTLPSpanExporter(endpoint)
    least = float("inf")
    for _ in range(TRIES):
        kept.clear()
        began = time.thread_time_ns()
        for _ in range(BATCHES):
            with tracer.processing("bench", batch), tracer.storing():
                pass
        spans = kept.get_finished_spans()
        for start in range(0, len(spans), SENT_AT_ONCE):
            exporter.export(spans[start : start + SENT_AT_ONCE])
        least = min(least, (time.thread_time_ns() - began) / BATCHES / 1000)
    return least


def off() -> float:
    """Return the microseconds that the calls take for a batch when nothing is traced."""
    tracer, least = Tracer(), float("inf")
    for _ in range(TRIES):
        began = time.thread_time_ns()
        for _ in range(10_000):
            with tracer.processing("bench", []) as span, tracer.storing():
                assert not span.followed
        least = min(least, (time.thread_time_ns() - began) / 10_000 / 1000)
    return least


def another_database(url: str, name: str) -> str:
    """Create a database on the server of `url`; return the new one's URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tracing", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="a turn")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenantry-bench-")))
        directory.chmod(0o755)
        collecting = stack.enter_context(collector())
        node, postgres = PrivateNode(directory / "rabbitmq"), EmbeddedPostgres(directory / "db")
        stack.callback(postgres.stop)
        db = postgres.start()
        stack.callback(node.stop)
        node.start()
        sides = []
        for name, endpoint in (("off", ""), ("on", collecting.url)):
            host = stack.enter_context(virtual_host_of(node.url, node.management_url))
            told = {
                "RABBITMQ_URL": host.url,
                "RABBITMQ_MANAGEMENT_URL": host.management_url,
                "TENANTRY_TRACING_ENDPOINT": endpoint,
                "TENANTRY_TRACING_SAMPLE_RATIO": "0.01",
            }
            daemon = running(directory / name, told, another_database(db, name))
            sides.append(Side(stack.enter_context(daemon), host.url, f"bench-{name}"))
        for number in range(-1, options.rounds):  # the first round warms up
            for kind in KINDS:
                run = f"{number}-{kind}"
                for side in sides:
                    side.fill(kind, options.messages, run)
                spent = {one: sides[one].drain(options.messages) for one in _turn(number)}
                if number >= 0:
                    found[kind].append((spent[0], spent[1]))
        own = {kind: own_cost(kind, f"{collecting.url}/v1/traces") for kind in KINDS}
    print("| messages | daemon without, µs a message, least | with | median of turns |")
    print("|---|---:|---:|---:|")
    least = {}
    for kind, turns in found.items():
        least[kind], along = (min(one) for one in zip(*turns, strict=True))
        dearer = statistics.median(on / before - 1 for before, on in turns)
        print(f"| {kind} | {least[kind]:.1f} | {along:.1f} | {dearer:+.1%} |")
    print(f"| messages | tracing itself, µs a batch of {BATCH} | of what the daemon takes for it |")
    print("|---|---:|---:|")
    for kind, took in {"off": off(), **own}.items():
        part = took / BATCH / least.get(kind, least["plain"])
        print(f"| {kind} | {took:.1f} | {part:.2%} |")


def _turn(number: int) -> tuple[int, int]:
    """Return the order of the two sides in a round."""
    return (0, 1) if number % 2 else (1, 0)


if __name__ == "__main__":
    main()
