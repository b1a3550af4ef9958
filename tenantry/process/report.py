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
            self._tell(text, ready=True)

    def leading(self, reasons: tuple[str, ...], *, tenants: int) -> None:
        """Tell whether the daemon is ready, or why not."""
        if not reasons:
            if not self._ready:
                log.info("daemon.ready", tenants=tenants)
            self._ready = True
            self._tell(f"consuming for {tenants} tenants", ready=True)
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
