"""Wakes those who wait for the journal to move on, within one process."""

from __future__ import annotations

import threading


class Bell:
    """The highest position heard of, and a way to wait for a higher one. Thread-safe."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._position = 0

    def ring(self, position: int) -> None:
        """Tell that the journal has reached `position`; an older one changes nothing."""
        with self._moved:
            if position > self._position:
                self._position = position
                self._moved.notify_all()

    def wait(self, after: int, timeout: float) -> bool:
        """Wait `timeout` seconds at most; tell whether a position beyond `after` was heard of."""
        with self._moved:
            return self._moved.wait_for(lambda: self._position > after, max(0.0, timeout))
