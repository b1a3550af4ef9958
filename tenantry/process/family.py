"""The processes of one service: what a daemon inherits from its parent, and the line to it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from tenantry.process.signals import Signals

log: Final = structlog.get_logger("daemon")

STOP: Final = b"S"
DRAIN: Final = b"D"
"""A child's requests to its parent that concern all children."""

VARIABLE: Final = "TENANTRY_INHERITED"
"""The environment variable that names the descriptors; only the parent sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """Descriptors of sockets that all children listen on, and of the line to their parent.

    `control` listens on the service's control socket, `relay` is the near end of the front's relay,
    `metrics` listens on the port for metrics, if there is one. `parent` is a stream to the parent;
    its end means that the parent is gone. `port` is that of the API, `family` the directory that
    contains each child's own directory. In `lost_spans` the front counts lost spans, if tracing is
    on.
    """

    control: int
    relay: int
    parent: int
    port: int | None
    metrics: int | None
    family: str
    lost_spans: int | None = None

    def write(self) -> str:
        """Return it as text for a child's environment."""
        return json.dumps(asdict(self))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All descriptors that a child inherits."""
        there = (self.control, self.relay, self.parent, self.metrics, self.lost_spans)
        return tuple(one for one in there if one is not None)

    @property
    def siblings(self) -> list[Path]:
        """The control sockets of all children, this process's own included."""
        return sorted(Path(self.family).glob("*/control.sock"))


def inherited(environ: Mapping[str, str] = os.environ) -> Inherited | None:
    """Return what this process inherits from its parent; None without a parent."""
    text = environ.get(VARIABLE)
    return None if text is None else Inherited(**json.loads(text))


class ParentLine:
    """The line to the parent: `run` ends, and calls `gone`, when the parent is gone."""

    def __init__(self, descriptor: int, gone: Callable[[], object]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._gone = gone
        self._stopping = threading.Event()

    def tell(self, what: bytes) -> None:
        """Send the parent a request, at any time; if the parent is gone, nothing happens."""
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
    """The processes of this process's service: stopping or draining applies to all of them.

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
        """Have the service drain; return whether the parent will tell this process to drain."""
        if self.parent is None:
            return False
        self.parent.tell(DRAIN)
        return True

    def _parent_gone(self) -> None:
        """End in order, since the parent can't restart this process; if already ending, at once."""
        if self._signals.stopping:
            os._exit(1)
        log.error("daemon.parent_gone", remedy="it ends; start the service again")
        self._signals.ask_to_stop()
