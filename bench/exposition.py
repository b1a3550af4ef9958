"""`python -m bench.exposition`: the page of metrics, beside the one that prometheus-client writes.

Both read the same collector; the figure is processor time, collecting included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from tenantry.broker.port import Delivery
from tenantry.control.port import ActorStatus, SystemState, SystemStatus, TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.messages.port import Incoming
from tenantry.metrics.collector import SystemCollector
from tenantry.metrics.page import write
from tenantry.metrics.recorder import Recorder

SIZES: Final = (10, 100, 1000)
ROUNDS: Final = 7


def registry_of(tenants: int) -> CollectorRegistry:
    """Make the registry of a daemon with `tenants` active tenants, each with a stored message."""
    names = [f"tenant-{number}" for number in range(tenants)]
    recorder = Recorder()
    for name in names:
        recorder.batch_stored(name, [_delivery()], 0.01)
    status = SystemStatus(
        state=SystemState.RUNNING,
        ready=True,
        reasons=(),
        started_at=datetime.now(UTC),
        version="0",
        pid=1,
        tree=ActorStatus(
            name="supervisor", kind="Supervisor", state="running", mailbox=0, restarts=0
        ),
        tenants={name: _runtime(name) for name in names},
    )
    registry = CollectorRegistry()
    registry.register(SystemCollector(status=lambda: status, recorder=recorder, reconnects={}))
    return registry


def _delivery() -> Delivery:
    now = time.time_ns() // 1_000_000
    message = Incoming("id", "logs", 0, b"{}", "application/json", None, published_at_ms=now)
    return Delivery(1, redelivered=False, message=message)


def _runtime(name: str) -> TenantRuntime:
    return TenantRuntime(
        tenant_id=name,
        workers_current=3,
        consuming=True,
        unsettled=7,
        rate=12.5,
        pending=5,
        stored=100_000,
        duplicates=3,
        dead_lettered=1,
        parked=None,
        lifecycle=Lifecycle.ACTIVE,
    )


def _write(registry: CollectorRegistry, *, openmetrics: bool) -> bytes:
    return write(registry.collect(), openmetrics=openmetrics).encode()


def best(act: Callable[[], object]) -> float:
    """Return the processor time of the fastest of several rounds, in milliseconds."""
    spans = []
    for _ in range(ROUNDS):
        began = time.process_time()
        act()
        spans.append(time.process_time() - began)
    return min(spans) * 1000


def main() -> None:
    """Measure, and print a table."""
    print("| tenants | format | ours, ms | prometheus-client, ms | of ours |")
    print("|---:|---|---:|---:|---:|")
    for tenants in SIZES:
        registry = registry_of(tenants)
        for name, openmetrics, theirs in (
            ("text", False, generate_latest),
            ("OpenMetrics", True, generate_openmetrics),
        ):
            ours = best(partial(_write, registry, openmetrics=openmetrics))
            other = best(partial(theirs, registry))
            print(f"| {tenants} | {name} | {ours:.1f} | {other:.1f} | {other / ours:.2f} |")


if __name__ == "__main__":
    main()
