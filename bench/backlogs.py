"""Tenants with backlogs: created, filled by their own clients, stored by a daemon."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from bench.load import body, wait_until
from bench.services import Services
from bench.subject import Subject
from tenantry.domain import names
from tenantry.tenant_client.amqp import TenantMessage
from tenantry.tenant_client.connecting import TenantClient, client_for

TOPIC = "events"
BATCH = 500


def message(number: int = 0) -> TenantMessage:
    """Make a message of 250 bytes of JSON."""
    return TenantMessage(
        routing_key=TOPIC,
        body=body(number),
        message_id=uuid.uuid4().hex,
        content_type="application/json",
        published_at_ms=time.time_ns() // 1_000_000,
    )


class Backlogs:
    """Tenants on some services, and their backlogs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._urls: dict[str, str] = {}

    @property
    def tenants(self) -> list[str]:
        """All tenants that were created."""
        return list(self._urls)

    def create(self, daemon: Subject, tenants: Iterable[str], *, at_once: int = 1) -> None:
        """Create the missing tenants, `at_once` at a time."""

        def create(tenant: str) -> None:
            self._urls[tenant] = daemon.create(tenant, topics=[TOPIC])

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(create, [one for one in tenants if one not in self._urls]))

    def client(self, tenant: str) -> TenantClient:
        """Connect as a tenant."""
        client = client_for(self._urls[tenant], name="bench")
        client.open()
        return client

    def publish(self, tenant: str, count: int) -> None:
        """Publish `count` messages with the tenant's own client."""
        with closing(self.client(tenant)) as client:
            for start in range(0, count, BATCH):
                messages = [message(one) for one in range(start, min(start + BATCH, count))]
                result = client.publish(names.exchange_name(tenant), messages)
                assert len(result.confirmed) == len(messages), result.reason

    def pile_up(self, daemon: Subject, backlogs: Mapping[str, int]) -> None:
        """Pause each tenant and publish its backlog."""
        for tenant, count in backlogs.items():
            daemon.call("POST", f"/tenants/{tenant}/pause")
            self.publish(tenant, count)

    def resume(self, daemon: Subject, tenants: Iterable[str]) -> None:
        """Resume the tenants, so that the daemon stores their backlogs."""
        for tenant in tenants:
            daemon.call("POST", f"/tenants/{tenant}/resume")

    def store(
        self, daemon: Subject, tenants: Sequence[str], messages: int
    ) -> tuple[float, dict[str, float]]:
        """Let the daemon store `messages` of some tenants, after a fifth as many to warm up.

        Return messages a second, and microseconds of processor time a message.
        """
        self._drain(daemon, tenants, messages // 5)
        return self._drain(daemon, tenants, messages)

    def _drain(
        self, daemon: Subject, tenants: Sequence[str], messages: int
    ) -> tuple[float, dict[str, float]]:
        share = messages // len(tenants)
        self.pile_up(daemon, dict.fromkeys(tenants, share))
        stored, count = daemon.stored(), share * len(tenants)
        processor = self._services.processor(daemon)
        before, began = processor.used(), time.perf_counter()
        self.resume(daemon, tenants)
        wait_until(lambda: daemon.stored() - stored >= count, timeout=600, every=0.1)
        rate = count / (time.perf_counter() - began)
        return rate, processor.each(before, count / 1e6)
