"""Loops that go on until they are stopped, each on a thread that its owner starts and joins."""

from __future__ import annotations

import os
import random
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol


class Loop(Protocol):
    """A loop that a thread may run. If it has a `heartbeat`, it is watched by that."""

    def run(self) -> None:
        """Go on until `stop`."""

    def stop(self) -> object:
        """Make `run` return soon; harmless twice, and before it."""


class Heartbeat:
    """One thread's sign of life. That thread writes, any may read; no lock is waited for."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: tuple[float, float | None] | None = None

    def beat(self, patience: float | None = None) -> None:
        """Beat: the next beat or rest is due within `patience` seconds, or the watcher's own."""
        self._latest = monotonic(), patience

    def rest(self) -> None:
        """Mark the thread as idle: silence means nothing until the next beat."""
        self._latest = None

    def overdue(self, now: float, *, patience: float, not_before: float = 0.0) -> float | None:
        """Return the seconds of a silence that is too long; None while it is not.

        Silence counts from `not_before` at the earliest; `patience` is for a beat without its own.
        """
        latest = self._latest
        if latest is None:
            return None
        at, asked = latest
        silent = now - max(at, not_before)
        return silent if silent > (patience if asked is None else asked) else None


class PeriodicService:
    """A loop that does `work` every so many seconds.

    An error of `work` ends `run`, unless `on_error` takes it: then the next turn comes all the
    same. A turn that takes longer than `longest` seconds (if None, the watcher's own patience)
    shows in `heartbeat`; work in several steps calls `go_on` between them, and each step has that
    time. `jitter` is the share of `every` by which a pause may be shorter. While `when` returns
    False, turns are skipped.
    """

    def __init__(
        self,
        work: Callable[[], object],
        *,
        every: float,
        longest: float | None = None,
        jitter: float = 0.0,
        at_once: bool = False,
        on_error: Callable[[Exception], object] | None = None,
        when: Callable[[], bool] = lambda: True,
    ) -> None:
        """The first turn comes after a pause, unless `at_once`."""
        self.heartbeat: Final = Heartbeat()
        self._work = work
        self._every = every
        self._longest = longest
        self._jitter = jitter
        self._at_once = at_once
        self._on_error = on_error
        self._when = when
        self._stopping = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether the loop is to end."""
        return self._stopping.is_set()

    def run(self) -> None:
        """Work and wait in turns."""
        if self._at_once and not self.stopping:
            self._turn()
        while not self._stopping.wait(self._pause()):
            if self._when():
                self._turn()

    def stop(self) -> None:
        """End `run`, once the work under way is done; harmless twice, and before it."""
        self._stopping.set()

    def go_on(self) -> None:
        """Beat: the work goes on."""
        self.heartbeat.beat(self._longest)

    def _pause(self) -> float:
        return self._every * random.uniform(1.0 - self._jitter, 1.0)  # noqa: S311

    def _turn(self) -> None:
        self.go_on()
        try:
            self._work()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
        self.heartbeat.rest()


class ThreadWakeup:
    """Wakes a thread that waits for a socket: `set`, from any thread, ends its `wait`."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)

    def __del__(self) -> None:
        os.close(self._reads)
        os.close(self._writes)

    def fileno(self) -> int:
        """Return the descriptor that is readable from `set` to `clear`."""
        return self._reads

    def set(self) -> None:
        """End the wait; harmless twice."""
        with suppress(BlockingIOError):
            os.write(self._writes, b"!")

    def clear(self) -> None:
        """Undo `set`, so that the next wait lasts."""
        with suppress(BlockingIOError):
            os.read(self._reads, 65536)

    def wait(self, also: int | None, timeout: float) -> None:
        """Wait for `set`, or for something to read on the descriptor `also`."""
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        if also is not None:
            poll.register(also, select.POLLIN)
        poll.poll(timeout * 1000)
