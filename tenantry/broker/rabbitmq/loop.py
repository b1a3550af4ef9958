"""pika's select loop on a thread of its own, with any number of connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import structlog
from pika.adapters.select_connection import IOLoop

from tenantry.loops import Heartbeat

log = structlog.get_logger(__name__)

BEAT_EVERY: Final = 1.0

AFTER_A_MISTAKE: Final = 1.0
"""Seconds until a loop that a callback's exception has ended begins again."""


class Member(Protocol):
    """A connection on a loop, as the loop knows it. Called on the loop's thread."""

    def begin(self, ioloop: IOLoop) -> None:
        """Connect."""

    def abandon(self, reason: str) -> None:
        """Record that the loop has gone, and the connection with it."""

    def close(self) -> None:
        """Close for good, then call `IoLoop.remove`."""


class IoLoop:
    """Runs connections, all on one thread. `run` belongs there; every callback runs there.

    `call` and `stop` may come from any thread, `add` and `remove` from the loop's, or before `run`.
    """

    def __init__(self) -> None:
        self.heartbeat: Final = Heartbeat()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._ioloop: IOLoop | None = None
        self._members: list[Member] = []

    @property
    def stopping(self) -> bool:
        """Whether the loop is to end."""
        return self._stopping.is_set()

    def add(self, member: Member) -> None:
        """Add a connection; it connects as soon as the loop runs."""
        self._members.append(member)
        if self._ioloop is not None:
            member.begin(self._ioloop)

    def remove(self, member: Member) -> None:
        """Remove a connection that is closed for good; harmless twice."""
        if member in self._members:
            self._members.remove(member)
        self._end_if_done()

    def run(self) -> None:
        """Serve every connection until `stop`."""
        while not self._stopping.is_set():
            self._serve()
            self._stopping.wait(AFTER_A_MISTAKE)

    def stop(self) -> None:
        """Close the connections cleanly, once everything sent has gone out, and end `run`."""
        self._stopping.set()
        self.call(self._close)

    def call(self, fn: Callable[[], None]) -> bool:
        """Run `fn` on the loop's thread soon; False if no loop is running to do so."""
        with self._lock:
            ioloop = self._ioloop
            if ioloop is None:
                return False
            ioloop.add_callback_threadsafe(fn)
            return True

    def _serve(self) -> None:
        ioloop = IOLoop()
        with self._lock:
            self._ioloop = ioloop
        reason = "the loop has ended"
        try:
            for member in tuple(self._members):
                member.begin(ioloop)
            if self._stopping.is_set():
                # `stop` may have been called before there was a loop.
                self.call(self._close)
            self._beat(ioloop)
            ioloop.start()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("broker.loop_failed")
        finally:
            with self._lock:
                self._ioloop = None
            for member in tuple(self._members):
                member.abandon(reason)
            ioloop.close()

    def _beat(self, ioloop: IOLoop) -> None:
        self.heartbeat.beat()
        ioloop.call_later(BEAT_EVERY, partial(self._beat, ioloop))

    def _close(self) -> None:
        for member in tuple(self._members):
            member.close()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._stopping.is_set() and not self._members and self._ioloop is not None:
            self._ioloop.stop()
