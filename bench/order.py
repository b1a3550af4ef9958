"""`python -m bench.order`: what strict order in eight partitions costs, beside eight without it.

The daemon stores a backlog of one tenant with one topic; the figures are messages a second, and its
processor time for each. Runs alternate, so that other load on the machine affects both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from bench import subject
from bench.load import Filler, wait_until
from bench.subject import Subject
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.domain import names
from tests.rabbitmq_node import PrivateNode

TENANT = "bench-order"
TOPIC = "events"


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.order", description=__doc__)
    parser.add_argument("--messages", type=int, default=60_000, help="a run")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="of each kind")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"none": [], "partition": []}
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        node, postgres = PrivateNode(directory / "rabbitmq"), EmbeddedPostgres(directory / "pg")
        try:
            node.start()
            db = postgres.start()
            rabbit = {"RABBITMQ_URL": node.url, "RABBITMQ_MANAGEMENT_URL": node.management_url}
            with subject.running(directory / "daemon", rabbit, db) as daemon:
                for _ in range(options.rounds):
                    for ordering, figures in found.items():
                        figures.append(
                            drain(daemon, node.url, ordering, options.partitions, options.messages)
                        )
        finally:
            node.stop()
            postgres.stop()
    print(json.dumps({ordering: _told(figures) for ordering, figures in found.items()}, indent=2))


def drain(
    daemon: Subject, url: str, ordering: str, partitions: int, count: int
) -> tuple[float, float]:
    """Queue messages, let the daemon store them; messages a second, processor seconds for each."""
    topic = {"name": TOPIC, "partitions": partitions, "ordering": ordering}
    daemon.call("POST", "/tenants", json={"id": TENANT, "name": TENANT, "topics": [topic]})
    daemon.call("POST", f"/tenants/{TENANT}/pause")
    before = daemon.stored()
    stream = names.exchange_name(TENANT)
    Filler(url, [(stream, f"{TOPIC}.{number}") for number in range(partitions)], count).run()
    process = psutil.Process(daemon.pid)
    spent, began = sum(process.cpu_times()[:2]), time.perf_counter()
    daemon.call("POST", f"/tenants/{TENANT}/resume")
    wait_until(lambda: daemon.stored() - before >= count, timeout=280)
    seconds = time.perf_counter() - began
    spent = sum(process.cpu_times()[:2]) - spent
    daemon.call("DELETE", f"/tenants/{TENANT}")
    return count / seconds, spent / count


def _told(figures: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "messages_a_second": round(statistics.median(rate for rate, _ in figures)),
        "daemon_microseconds_a_message": round(
            statistics.median(spent for _, spent in figures) * 1e6, 1
        ),
    }


if __name__ == "__main__":
    main()
