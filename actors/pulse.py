"""An actor's pulse: whether it goes on with its work, and whether what it says still counts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger("actors")

_ROOT: Final = Path(__file__).parents[2]


class FencedError(Exception):
    """The actor was replaced while it was busy: nothing it still does may count."""


class Pulse(Heartbeat):
    """A heartbeat, and a fence.

    An actor that is replaced while its thread hangs can't be ended: Python has no way. It is
    fenced instead: from then on it says nothing to its parent, handles no message, and what it
    holds outside is given back by whoever fences it.
    """

    __slots__ = ("_fenced", "_gate", "_releases", "name", "stuck", "thread")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.thread: threading.Thread | None = None
        self._fenced = False
        self.stuck = False
        """Written by the watch alone."""
        self._gate = threading.Lock()
        self._releases: list[Callable[[], None]] = []

    def is_fenced(self) -> bool:
        """Tell whether the actor has been replaced."""
        return self._fenced

    def fence(self) -> None:
        """Make void what the actor says from now on, and give back what it holds. From any thread.

        When this returns, no word of the actor is under way any more. Harmless twice.
        """
        with self._gate:
            self._fenced = True
            releases, self._releases = self._releases, []
        for release in releases:
            self._release(release)

    def on_fence(self, release: Callable[[], None]) -> None:
        """Have `release`, which may be called from any thread, give back something at a fence."""
        with self._gate:
            if not self._fenced:
                self._releases.append(release)
                return
        self._release(release)

    def forget(self) -> None:
        """Hold the actor no longer, which has ended and has given everything back itself."""
        with self._gate:
            self._releases.clear()

    def go_on(self, patience: float | None = None) -> None:
        """Beat, between the steps of a long work; raise `FencedError` where it is to end.

        The next beat, or the end of the message, is due within `patience` seconds; without, within
        the usual.
        """
        if self._fenced:
            raise FencedError(self.name)
        self.beat(patience)

    def unless_fenced(self, say: Callable[[], object]) -> None:
        """Say something, which must not block, unless nobody is to hear it any more."""
        with self._gate:
            if not self._fenced:
                say()

    @property
    def ended(self) -> bool:
        """Whether the actor's thread was there and is there no more."""
        return self.thread is not None and not self.thread.is_alive()

    def where(self) -> str:
        """Say where in the program the actor's thread is now, for people."""
        return "" if self.thread is None else where_is(self.thread)

    def _release(self, release: Callable[[], None]) -> None:
        try:
            release()
        except Exception:
            log.exception("actor.release_failed", stuck=self.name)


def where_is(thread: threading.Thread) -> str:
    """Say where in the program a thread is now, for people."""
    # The one way to look at another thread; it has been there since Python 2.5.
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001
    places: list[str] = []
    while frame is not None and len(places) < 3:
        path = Path(frame.f_code.co_filename)
        name = path.relative_to(_ROOT) if path.is_relative_to(_ROOT) else path.name
        places.append(f"{name}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
