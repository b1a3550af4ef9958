"""The processes of one service, and the way to their parent."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from tenantry.process.inherited import Inherited
from tenantry.process.signals import Signals

log: Final = structlog.get_logger("daemon")

STOP: Final = b"S"
DRAIN: Final = b"D"
"""What a child tells its parent, for all of them."""


class ParentLine:
    """The way to the parent: `run` ends when the parent is gone, and says so; `tell` any time."""

    def __init__(self, descriptor: int, gone: Callable[[], object]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._gone = gone
        self._stopping = threading.Event()

    def tell(self, what: bytes) -> None:
        """Tell the parent something; one that is gone hears nothing."""
        with suppress(OSError):
            self._socket.send(what)

    def run(self) -> None:
        """Wait for the parent's end: it never writes."""
        with suppress(OSError):
            self._socket.recv(1)
        if not self._stopping.is_set():
            self._gone()

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)


class Family:
    """The processes that are one service with this one: what ends or drains it does so to all.

    A process without a parent is a service of its own.
    """

    def __init__(self, inherited: Inherited | None, signals: Signals) -> None:
        self._signals = signals
        self.parent: Final = (
            None if inherited is None else ParentLine(inherited.parent, self._parent_gone)
        )

    def stop(self) -> None:
        """Stop the service."""
        if self.parent is None:
            self._signals.ask_to_stop()
        else:
            self.parent.tell(STOP)

    def drain(self) -> bool:
        """Have the service drain; tell whether the parent will ask this process for it, too."""
        if self.parent is None:
            return False
        self.parent.tell(DRAIN)
        return True

    def _parent_gone(self) -> None:
        """End in order, without the one that would start this process again; or at once."""
        if self._signals.stopping:
            os._exit(1)
        log.error("daemon.parent_gone", remedy="it ends; start the service again")
        self._signals.ask_to_stop()
