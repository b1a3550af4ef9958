"""Telling people and the service manager how the daemon is, whenever that changes."""

from __future__ import annotations

from typing import Final

import structlog

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
            self._tell("READY=1", text)

    def leading(self, reasons: tuple[str, ...], *, tenants: int) -> None:
        """Tell whether the daemon is ready, or why not."""
        if not reasons:
            if not self._ready:
                log.info("daemon.ready", tenants=tenants)
            self._ready = True
            self._tell("READY=1", f"consuming for {tenants} tenants")
        elif self._ready:
            self._ready = False
            log.warning("daemon.not_ready", reasons=reasons)
            self._tell(None, f"not ready: {'; '.join(reasons)}")

    def _tell(self, state: str | None, text: str) -> None:
        if text != self._told:
            self._told = text
            self._notifier.notify(*([state] if state else []), f"STATUS={text}")
