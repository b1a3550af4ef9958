"""What the daemon does on signals: the first that ends it does so in order, the second at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class StopRequestedError(BaseException):
    """A signal came while the daemon was starting; not an `Exception`, so that nothing eats it."""


class Signals:
    """The signals of a process; `heard` belongs on its main thread.

    Until `patient` is set, the signal that ends the daemon raises `StopRequestedError` in whatever
    the main thread does; from then on it only sets `stop`. SIGHUP sets `reload`. Both wake who
    waits for `wake`.
    """

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.stop = threading.Event()
        self.reload = threading.Event()
        self.patient = False
        self.interrupted = False
        self._signalled = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals until the block ends."""
        handlers = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._reload,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask_to_stop(self) -> None:
        """End the daemon in order; callable from any thread."""
        self.stop.set()
        self.wake.set()

    def _end(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            _end_at_once()
        self._signalled = True
        self.ask_to_stop()
        if not self.patient:
            self.interrupted = True
            raise StopRequestedError(signal.Signals(number).name)

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload.set()
        self.wake.set()


def _end_at_once() -> NoReturn:
    """End without draining: the broker redelivers what was not acknowledged."""
    os.write(sys.stderr.fileno(), b"tenantry: second signal, ending at once\n")
    os._exit(1)
