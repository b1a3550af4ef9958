"""How many messages wait in each tenant's queues, asked for now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

import structlog

from tenantry.broker.port import BrokerError, Queues
from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

EVERY: Final = 3.0
"""Seconds between questions. The broker's own counts are up to 5 seconds old; 10 is promised."""

STALE: Final = 10.0
"""Seconds after which an answer is none any more: the broker is slow to give another."""


class PendingCounts:
    """How many messages wait, by tenant, as last counted; dead letters are none of them.

    `run` belongs on a thread of its own, until `stop`.
    """

    def __init__(self, queues: Queues, *, every: float = EVERY) -> None:
        self.heartbeat: Final = Heartbeat()
        self._queues = queues
        self._every = every
        self._stopping = threading.Event()
        self._latest: tuple[float, Mapping[str, int]] | None = None

    def counts(self) -> Mapping[str, int] | None:
        """Give the latest counts; None while the broker can't be asked, or does not answer."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > STALE:
            return None
        return latest[1]

    def run(self) -> None:
        """Ask again and again."""
        while not self._stopping.is_set():
            self.heartbeat.beat()
            try:
                counts = self._queues.queue_counts()
                ready = {tenant_id: one.ready for tenant_id, one in counts.items()}
                self._latest = time.monotonic(), ready
            except BrokerError as error:
                self._latest = None
                log.debug("broker.pending_unknown", error=str(error))
            self._stopping.wait(self._every)

    def stop(self) -> None:
        """End `run`, once the question under way is answered."""
        self._stopping.set()
