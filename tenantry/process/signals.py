"""Signals of the daemon: the first ending signal ends it in order, the second at once."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

from tenantry.process import startup_signals


class StopRequestedError(BaseException):
    """A signal came during the start; not an `Exception`, so that no handler swallows it."""


class Signals:
    """The signals of a process; `heard` and `wait` belong on its main thread.

    Until `patient` is set, the signal that ends the daemon raises `StopRequestedError` in the main
    thread; from then on it only ends `wait`. So does SIGHUP, which asks for a reload.
    """

    def __init__(self) -> None:
        self.patient = False
        self.interrupted = False
        self.stopping = False
        self._signalled = False
        self._reload = False
        self._drain = False
        # A pipe and no `threading.Event`: a signal's handler must not wait for a lock that the
        # interrupted thread may hold.
        self._awake, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle signals until the block ends."""
        handlers = {
            signal.SIGTERM: self._end,
            signal.SIGINT: self._end,
            signal.SIGHUP: self._hang_up,
            signal.SIGUSR2: self._drain_too,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        # Ends `wait` before the handler runs, whichever thread the signal reaches.
        bell = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(bell)
            for number, handler in before.items():
                # The startup handlers, which report a start, would be wrong at the end.
                if handler not in (startup_signals.end_while_starting, startup_signals.ignore):
                    signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait, at most until an event; return whether the daemon is to stop."""
        if select.select([self._awake], [], [], seconds)[0]:
            os.read(self._awake, 512)
        return self.stopping

    def take_reload(self) -> bool:
        """Return whether a reload was requested since the last call."""
        wanted, self._reload = self._reload, False
        return wanted

    def take_drain(self) -> bool:
        """Return whether the parent has told this process to drain since the last call."""
        wanted, self._drain = self._drain, False
        return wanted

    def ask_to_stop(self) -> None:
        """End the daemon in order; callable from any thread."""
        self.stopping = True
        self._ring()

    def _end(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            _end_at_once()
        self._signalled = True
        self.ask_to_stop()
        if not self.patient:
            self.interrupted = True
            raise StopRequestedError(signal.Signals(number).name)

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self._reload = True
        self._ring()

    def _drain_too(self, _number: int, _frame: FrameType | None) -> None:
        self._drain = True
        self._ring()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # full: `wait` is woken anyway
            os.write(self._wake, b"\0")


def _end_at_once() -> NoReturn:
    """End without draining: the broker redelivers unacknowledged messages."""
    os.write(sys.stderr.fileno(), b"tenantry: second signal, ending at once\n")
    os._exit(1)


DRAIN_SECONDS: Final = 5.0
"""Seconds to drain after a failure; the broker redelivers unfinished messages."""

END_SECONDS: Final = 20.0
"""Seconds for the whole end after a failure: the service manager waits to restart the process."""


def end_at_latest(seconds: float = END_SECONDS) -> None:
    """End the process with exit 1 in so many seconds, unless it has ended by itself."""
    timer = threading.Timer(seconds, _end_late)
    timer.daemon = True
    timer.start()


def _end_late() -> NoReturn:
    os.write(sys.stderr.fileno(), b"tenantry: it does not end by itself, ending at once\n")
    os._exit(1)
