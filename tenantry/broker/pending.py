"""How many messages wait in each tenant's queues, asked for now and then."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

import structlog

from tenantry.broker.port import Administration, BrokerError

log = structlog.get_logger(__name__)

EVERY: Final = 5.0
"""Seconds between questions; the broker's own statistics are as old."""


class PendingCounts:
    """The broker's latest counts, by tenant. `run` belongs on a thread of its own, until `stop`."""

    def __init__(self, administration: Administration, *, every: float = EVERY) -> None:
        self._administration = administration
        self._every = every
        self._stopping = threading.Event()
        self._counts: Mapping[str, int] | None = None

    def counts(self) -> Mapping[str, int] | None:
        """Give the latest counts; None while the broker can't be asked."""
        return self._counts

    def run(self) -> None:
        """Ask again and again."""
        while not self._stopping.is_set():
            try:
                self._counts = self._administration.pending()
            except BrokerError as error:
                self._counts = None
                log.debug("broker.pending_unknown", error=str(error))
            self._stopping.wait(self._every)

    def stop(self) -> None:
        """End `run`, once the question under way is answered."""
        self._stopping.set()
