"""`python -m bench.burst`: a burst on a tenant whose workers follow the load.

The tenant's handler takes some milliseconds a message, so too few workers limit the rate. Backlog,
workers and latency are read every second, and drawn.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from bench.load import body
from bench.plot import Panel, write
from bench.services import BROKERS, alone, missing
from bench.subject import Subject
from tenantry.domain import names
from tenantry.tenant_client.amqp import TenantMessage
from tenantry.tenant_client.connecting import client_for

TENANT, TOPIC = "burst", "events"
HANDLER_SECONDS = 0.005
TICK = 0.1

Seen = dict[str, list[tuple[float, float]]]


def handle(_message: Any, _cursor: Any) -> None:
    """Take a while, as a call to another service does."""
    time.sleep(HANDLER_SECONDS)


def publish(url: str, plan: list[tuple[float, float]], done: threading.Event) -> None:
    """Publish at each rate of the plan (messages/s) for its seconds."""
    with closing(client_for(url, name="bench")) as client:
        client.open()
        due, owed, number = time.monotonic(), 0.0, 0
        for rate, seconds in plan:
            for _ in range(round(seconds / TICK)):
                if done.is_set():
                    return
                owed += rate * TICK
                messages = []
                while owed >= 1:
                    owed, number = owed - 1, number + 1
                    messages.append(
                        TenantMessage(
                            routing_key=TOPIC,
                            body=body(number),
                            message_id=uuid.uuid4().hex,
                            content_type="application/json",
                            published_at_ms=time.time_ns() // 1_000_000,
                        )
                    )
                if messages:
                    client.publish(names.exchange_name(TENANT), messages)
                due += TICK
                done.wait(max(0.0, due - time.monotonic()))
    done.set()


def watch(daemon: Subject, database: str, seconds: float) -> Seen:
    """Read backlog, workers and latency every second."""
    seen: Seen = {"backlog": [], "workers": [], "latency": []}
    query = f"""
        SELECT avg(extract(epoch FROM created_at - published_at))
        FROM tenantry.{names.partition_table_name(TENANT)}
        WHERE created_at > now() - interval '1 second'"""
    began = time.monotonic()
    with psycopg.connect(database, autocommit=True) as connection:
        while (at := time.monotonic() - began) < seconds:
            tenant = daemon.call("GET", f"/tenants/{TENANT}")
            row = connection.execute(query.encode()).fetchone()
            seen["backlog"].append((at, tenant["messages_pending"] or 0))
            seen["workers"].append((at, tenant["workers_current"]))
            if row is not None and row[0] is not None:
                seen["latency"].append((at, float(row[0])))
            time.sleep(max(0.0, began + len(seen["backlog"]) - time.monotonic()))
    return seen


def measure(
    daemon: Subject,
    database: str,
    limits: dict[str, int],
    plan: list[tuple[float, float]],
    seconds: float,
) -> tuple[Seen, dict[str, Any]]:
    """Publish the burst; return the readings, and the tenant's events."""
    url = daemon.create(TENANT, topics=[TOPIC], workers=1)
    daemon.call("PUT", f"/tenants/{TENANT}/limits", json=limits)
    done = threading.Event()
    publishing = threading.Thread(target=publish, args=(url, plan, done))
    publishing.start()
    try:
        seen = watch(daemon, database, seconds)
    finally:
        done.set()
        publishing.join()
    return seen, daemon.call("GET", f"/tenants/{TENANT}/events", params={"limit": 200})


def main() -> None:
    """Run a burst and draw it."""
    parser = argparse.ArgumentParser(prog="python -m bench.burst", description=__doc__)
    parser.add_argument("--broker", choices=list(BROKERS), default="RabbitMQ")
    parser.add_argument("--rate", type=float, default=100, help="messages/s before and after")
    parser.add_argument("--burst", type=float, default=1000, help="messages/s of the burst")
    parser.add_argument("--burst-seconds", type=float, default=40)
    parser.add_argument("--workers-max", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=240, help="in all")
    parser.add_argument("--plot", type=Path, help="draw it as SVG, into this file")
    given = parser.parse_args()
    console = Console(stderr=True)
    if (reason := missing(given.broker)) is not None:
        raise SystemExit(f"{given.broker}: {reason}")
    plan = [
        (given.rate, 20.0),
        (given.burst, given.burst_seconds),
        (given.rate, max(0.0, given.seconds - given.burst_seconds - 30)),
    ]
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        home = Path(name)
        home.chmod(0o755)
        settings = {"TENANTRY_HANDLERS": f"{TOPIC}=bench.burst:handle"}
        limits = {"workers_min": 1, "workers_max": given.workers_max}
        with alone(given.broker, home) as services, services.running(settings) as daemon:
            seen, events = measure(daemon, services.db, limits, plan, given.seconds)
    for event in events["data"]:
        if event["type"] == "WorkersResized":
            data = event["data"]
            console.print(f"{data['previous']} -> {data['workers']}: {data['reason']}")
    worst = max((value for _, value in seen["latency"]), default=0)
    console.print(
        f"most waiting {max(v for _, v in seen['backlog']):.0f}, "
        f"most workers {max(v for _, v in seen['workers']):.0f}, slowest second {worst:.1f} s"
    )
    if given.plot:
        panels = [
            Panel(title="messages that wait", curves={"waiting": seen["backlog"]}),
            Panel(title="workers", curves={"workers": seen["workers"]}, steps=True),
            Panel(title="seconds from publishing to commit", curves={"latency": seen["latency"]}),
        ]
        write(given.plot, "A burst, and workers that follow it", panels)


if __name__ == "__main__":
    main()
