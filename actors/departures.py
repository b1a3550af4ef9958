"""Actors that were told to go: their threads are remembered until they have ended."""

from __future__ import annotations

from collections import deque

from tenantry.actors.messages import Ref
from tenantry.actors.pulse import Pulse
from tenantry.actors.supervision import pulse_of


class Departures:
    """What parents have let go. They add, from their threads; the watch alone takes out."""

    def __init__(self) -> None:
        self._leaving: deque[Pulse] = deque()
        self.abandoned: tuple[Pulse, ...] = ()
        """Those that hang: Python can't end a thread that does not end by itself."""

    def let_go(self, ref: Ref) -> None:
        """Tell an actor to stop, after what its mailbox holds."""
        self._leaving.append(pulse_of(ref))
        if ref.is_alive():
            ref.stop(block=False)

    def replace(self, ref: Ref) -> None:
        """Let an actor go that hangs, or is owned by one: it is fenced first."""
        pulse_of(ref).fence()
        self.let_go(ref)

    def look(self, now: float, *, patience: float, not_before: float) -> None:
        """Forget the threads that have ended, and fence those that hang."""
        abandoned: dict[int, Pulse] = {}
        for _ in range(len(self._leaving)):
            pulse = self._leaving.popleft()
            if pulse.ended:
                continue
            self._leaving.append(pulse)
            silent = pulse.overdue(now, patience=patience, not_before=not_before)
            if pulse.is_fenced() or silent is not None:
                pulse.fence()
                abandoned[id(pulse)] = pulse  # one may have been let go twice
        self.abandoned = tuple(abandoned.values())
