"""Signs of life to the service manager, as long as there is life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from tenantry.telemetry.heartbeat import Heartbeat
from tenantry.telemetry.systemd import Notifier

log: Final = structlog.get_logger("daemon")

PATIENCE: Final = 20.0
"""Seconds the main thread may be silent, which looks on or asks for the term: often, but a
database that answers slowly may hold it up."""


class Watchdog:
    """Beats as often as the manager wants, unless something hangs; then the manager restarts us.

    `liveness` says why the process can't go on. `main` is the main thread's heartbeat: it is the
    one that watches all others, so it is watched from here. `run` belongs on a thread of its own.
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        every: float,
        liveness: Callable[[], tuple[str, ...]],
        main: Heartbeat,
    ) -> None:
        self._notifier = notifier
        self._every = every
        self._liveness = liveness
        self._main = main
        self._stopping = threading.Event()

    def run(self) -> None:
        """Beat until `stop`."""
        withheld = False
        while True:
            reasons = self._reasons()
            if not reasons:
                self._notifier.alive()
            elif not withheld:
                log.critical("watchdog.withheld", reasons=reasons)
            withheld = bool(reasons)
            if self._stopping.wait(self._every):
                return

    def stop(self) -> None:
        """End `run`; harmless twice, and before it."""
        self._stopping.set()

    def _reasons(self) -> tuple[str, ...]:
        silent = self._main.overdue(time.monotonic(), patience=PATIENCE)
        if silent is None:
            return self._liveness()
        return (f"the main thread has hung for {silent:.0f} s", *self._liveness())
