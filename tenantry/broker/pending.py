"""The number of messages ready in each tenant's queues, polled now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog

from tenantry.broker.port import BrokerError, QueueCounts, Queues
from tenantry.loops import PeriodicService

log = structlog.get_logger(__name__)

EVERY: Final = 3.0
"""Seconds between polls, if they are cheap. RabbitMQ's own counts are up to 5 seconds old; 10 is
promised."""

SELDOM: Final = 5.0
"""Seconds between polls at most, if they are not: where the database counts long queues, say."""

PART: Final = 0.01
"""The part of the time that polls take, if it can be: all tenants' messages wait for them."""

SLACK: Final = 1.0
"""Seconds by which the next answer may be late while the latest still serves."""

STALE: Final = 10.0
"""Seconds after which an answer no longer counts: the broker is slow to give another."""


class PendingCounts(PeriodicService):
    """The latest counts of ready messages, by tenant, without dead letters.

    Callers that can do with counts a few seconds old ask here (`tenantry.broker.port.Queues`): with
    thousands of tenants each question to the broker has a long answer.
    """

    def __init__(self, queues: Queues, *, every: float = EVERY) -> None:
        super().__init__(self._ask, every=every, at_once=True)
        self._queues = queues
        self._least = every
        self._latest: tuple[float, Mapping[str, QueueCounts], Mapping[str, int]] | None = None

    def counts(self) -> Mapping[str, int] | None:
        """Return the latest counts; None while the broker can't be reached, or does not answer."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > STALE:
            return None
        return latest[2]

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Return each tenant's counts, as of a few seconds ago."""
        latest = self._latest
        if latest is None or time.monotonic() - latest[0] > self._every + SLACK:
            return self._queues.queue_counts()
        return latest[1]

    def _ask(self) -> None:
        began = time.monotonic()
        try:
            counts = self._queues.queue_counts()
            ready = {tenant_id: one.ready for tenant_id, one in counts.items()}
            now = time.monotonic()
            self._latest = now, counts, ready
            self._every = max(self._least, min(SELDOM, (now - began) / PART))
        except BrokerError as error:
            self._latest = None
            log.debug("broker.pending_unknown", error=str(error))
