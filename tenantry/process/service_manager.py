"""Reports the daemon's state and liveness to the log and to the service manager.

systemd is told by sd_notify(3), which takes no more than a datagram.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from tenantry.loops import Heartbeat, PeriodicService

log: Final = structlog.get_logger("daemon")

_WATCHDOG_SHARE: Final = 3
"""The number of beats sent in the time in which systemd wants one."""


class Report:
    """Reports changes of state to the log and the service manager. Belongs to the main thread.

    The service manager gets READY=1 once the daemon does its work: it consumes, or it stands by for
    the leader.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._ready = False
        self._told = ""

    def standing_by(self, reasons: tuple[str, ...]) -> None:
        """Report that another daemon leads."""
        text = "; ".join(reasons)
        if text != self._told:
            log.info("daemon.standing_by", reasons=reasons)
            self._tell(text, ready=True)

    def leading(self, reasons: tuple[str, ...], **at_work: int) -> None:
        """Report that the daemon is ready, or why not; `at_work` counts the things it serves."""
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
        """Report the unchanged state after the configuration was read again."""
        self._notifier.ready(self._told)

    def _tell(self, text: str, *, ready: bool) -> None:
        if text != self._told:
            self._told = text
            (self._notifier.ready if ready else self._notifier.status)(text)


PATIENCE: Final = 20.0
"""Seconds the main thread, which watches or asks for the term, may be silent: it does so often, but
a slow database may hold it up."""


class Watchdog(PeriodicService):
    """Beats as often as the manager wants; if something hangs, the manager misses beats.

    The manager then restarts the daemon. `liveness` returns why the process can't go on. `main` is
    the main thread's heartbeat: the main thread watches all others, so the watchdog watches it.
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


class Notifier:
    """Sends states to the service manager that started the process, if there is one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.beat_every = _beat_every(environ) if self._address else None
        """Seconds between beats for the manager; None if it wants none."""

    def ready(self, status: str) -> None:
        """Report that the service does its work, or does so again."""
        self.notify("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Report the service's state in one line."""
        self.notify(f"STATUS={text}")

    def alive(self) -> None:
        """Give a sign of life."""
        self.notify("WATCHDOG=1")

    def reloading(self) -> None:
        """Report that the configuration is being reloaded; `ready` ends that."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.notify("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Report that the shutdown has begun."""
        self.notify("STOPPING=1", f"STATUS={status}")

    def notify(self, *states: str) -> None:
        """Send assignments such as `READY=1`. A manager that can't be reached is no error."""
        address = self._address
        if not address:
            return
        if address.startswith("@"):
            # An abstract socket: its name begins with a zero byte.
            address = "\0" + address[1:]
        message = "\n".join(state.replace("\n", " ") for state in states)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto(message.encode(), address)
        except OSError:
            return


def _beat_every(environ: Mapping[str, str]) -> float | None:
    """Read what sd_watchdog_enabled(3) reads: the interval, and the process it is meant for."""
    wanted, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(wanted) / 1_000_000 / _WATCHDOG_SHARE
