"""Messages to be sent later: the one timer of all actors."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from typing import Final, Protocol

from tenantry.actors.messages import Ref
from tenantry.actors.supervision import tell
from tenantry.loops import Heartbeat

BEAT_EVERY: Final = 1.0


class Clock(Protocol):
    """Sends messages later, and tells the time. Callable from any thread."""

    def now(self) -> float:
        """Return seconds of a clock that never goes back."""

    def tell_later(self, delay: float, ref: Ref, message: object) -> None:
        """Tell `ref` a message in `delay` seconds; harmless if the actor is gone by then."""


class ThreadClock:
    """A clock whose `run` belongs on a thread of its own, until `stop`."""

    def __init__(self) -> None:
        self.heartbeat: Final = Heartbeat()
        self._due: list[tuple[float, int, Ref, object]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False

    def now(self) -> float:
        """Return seconds of the system's monotonic clock."""
        return time.monotonic()

    def tell_later(self, delay: float, ref: Ref, message: object) -> None:
        """Tell `ref` a message in `delay` seconds."""
        with self._changed:
            heapq.heappush(self._due, (self.now() + delay, next(self._order), ref, message))
            if self._due[0][2] is ref:
                self._changed.notify()

    def run(self) -> None:
        """Send messages as they fall due, until `stop`."""
        while True:
            with self._changed:
                while not self._stopping and (not self._due or self._due[0][0] > self.now()):
                    self.heartbeat.beat()
                    left = self._due[0][0] - self.now() if self._due else BEAT_EVERY
                    self._changed.wait(min(BEAT_EVERY, left))
                if self._stopping:
                    return
                _, _, ref, message = heapq.heappop(self._due)
            tell(ref, message)

    def stop(self) -> None:
        """End `run`; messages that are not due yet are never sent."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
