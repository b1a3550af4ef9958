"""What people and the service manager are told: how the daemon is, and that it lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from tenantry.loops import Heartbeat, PeriodicService
from tenantry.telemetry.systemd import Notifier

log: Final = structlog.get_logger("daemon")


class Report:
    """What the log and the service manager have been told. Belongs to the main thread.

    The service manager hears READY=1 once the daemon does what it is there for: it consumes, or it
    stands by for the one that does.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ready = False
        self._told = ""

    def standing_by(self, reasons: tuple[str, ...]) -> None:
        """Tell that another daemon leads."""
        text = "; ".join(reasons)
        if text != self._told:
            log.info("daemon.standing_by", reasons=reasons)
            self._tell(text, ready=True)

    def leading(self, reasons: tuple[str, ...], **at_work: int) -> None:
        """Tell whether the daemon is ready, or why not; `at_work` counts what it is there for."""
        if not reasons:
            if not self._ready:
                log.info("daemon.ready", **at_work)
            self._ready = True
            told = ", ".join(f"{count} {what}" for what, count in at_work.items())
            self._tell(f"consuming for {told}", ready=True)
        elif self._ready:
            self._ready = False
            log.warning("daemon.not_ready", reasons=reasons)
            self._tell(f"not ready: {'; '.join(reasons)}", ready=False)

    def reloaded(self) -> None:
        """Tell that the daemon is as it was, after it has read its configuration again."""
        self._notifier.ready(self._told)

    def _tell(self, text: str, *, ready: bool) -> None:
        if text != self._told:
            self._told = text
            (self._notifier.ready if ready else self._notifier.status)(text)


PATIENCE: Final = 20.0
"""Seconds the main thread may be silent, which looks on or asks for the term: often, but a
database that answers slowly may hold it up."""


class Watchdog(PeriodicService):
    """Beats as often as the manager wants, unless something hangs; then the manager restarts us.

    `liveness` says why the process can't go on. `main` is the main thread's heartbeat: that
    thread watches all others, so it is watched from here.
    """

    def __init__(
        self,
        notifier: Notifier,
        *,
        every: float,
        liveness: Callable[[], tuple[str, ...]],
        main: Heartbeat,
    ) -> None:
        super().__init__(self._beat, every=every, at_once=True)
        self._notifier = notifier
        self._liveness = liveness
        self._main = main
        self._withheld = False

    def _beat(self) -> None:
        reasons = self._reasons()
        if not reasons:
            self._notifier.alive()
        elif not self._withheld:
            log.critical("watchdog.withheld", reasons=reasons)
        self._withheld = bool(reasons)

    def _reasons(self) -> tuple[str, ...]:
        silent = self._main.overdue(time.monotonic(), patience=PATIENCE)
        if silent is None:
            return self._liveness()
        return (f"the main thread has hung for {silent:.0f} s", *self._liveness())
