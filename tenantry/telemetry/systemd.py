"""Telling systemd how the service is: the sending side of the notify protocol (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_WATCHDOG_SHARE: Final = 3
"""So many beats are sent in the time in which systemd wants one."""


class Notifier:
    """Sends states to the service manager that started the process; nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.beat_every = _beat_every(environ) if self._address else None
        """Seconds between the signs of life the manager asks for; None: it asks for none."""

    def ready(self, status: str) -> None:
        """Say that the service does what it is there for, or does so again."""
        self.notify("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Say in a line how it is."""
        self.notify(f"STATUS={text}")

    def alive(self) -> None:
        """Give a sign of life."""
        self.notify("WATCHDOG=1")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` ends that."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.notify("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Say that the end has begun."""
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
    """Read what sd_watchdog_enabled(3) reads: the time, and for which process it is meant."""
    wanted, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted.isdecimal() or int(wanted) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(wanted) / 1_000_000 / _WATCHDOG_SHARE
