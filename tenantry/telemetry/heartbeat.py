"""Signs of life: a thread says that it goes on; somebody else looks whether it still does."""

from __future__ import annotations

from time import monotonic


class Heartbeat:
    """One thread's sign of life. That thread writes, anybody reads; nobody waits for a lock."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: tuple[float, float | None] | None = None

    def beat(self, patience: float | None = None) -> None:
        """Say "I go on": the next word is due within `patience` seconds, or the watcher's own."""
        self._latest = monotonic(), patience

    def rest(self) -> None:
        """Say "I wait for something to do": silence means nothing until the next beat."""
        self._latest = None

    def overdue(self, now: float, *, patience: float, not_before: float = 0.0) -> float | None:
        """Give the seconds of a silence that is too long; None while it is not.

        Silence counts from `not_before` at the earliest; `patience` is for a beat that named none.
        """
        latest = self._latest
        if latest is None:
            return None
        at, asked = latest
        silent = now - max(at, not_before)
        return silent if silent > (patience if asked is None else asked) else None
