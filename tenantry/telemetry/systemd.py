"""Telling systemd how the service is: the sending side of the notify protocol (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the service manager that started the process; nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")

    def notify(self, *states: str) -> None:
        """Send assignments such as `READY=1`. A manager that can't be reached is no error."""
        address = self._address
        if not address:
            return
        if address.startswith("@"):
            # An abstract socket: its name begins with a zero byte.
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto("\n".join(states).encode(), address)
        except OSError:
            return
