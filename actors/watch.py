"""Notices actors and loops that hang or have died silently, and reports them.

The watch runs on a thread that needs no actor, and asks nothing: every actor and every loop below
them leaves a heartbeat. The watch tells the parent of a hanging child to replace it. Where no
parent can do so (the supervisor itself, a loop that all depend on, too many threads that can't be
ended), the process is no longer live, and its service manager has to restart it. A hanging loop
that nothing waits for is logged and counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

import structlog

from tenantry.actors.messages import ChildFailed, Ref
from tenantry.actors.ports import Observer
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import heartbeat_of, tell, where_is
from tenantry.control.port import SystemState
from tenantry.loops import Heartbeat

log = structlog.get_logger("actors.watch")

PATIENCE: Final = 60.0
"""Seconds that an actor or a loop may be silent, unless it has named a time of its own."""

MOST_ABANDONED: Final = 16
"""Threads of replaced actors that may hang; each holds memory, and perhaps a connection."""

LONGEST_ROUND: Final = 3.0
"""Seconds between two rounds of all actors, at most: there may be thousands. A twentieth of the
patience, where that is less."""

FROZEN: Final = 5.0
"""Seconds between two looks from which on the whole process was held up, the watch included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedThread:
    """A thread that runs until the process ends, and its heartbeat.

    Without a `vital` thread, everything else stops before long.
    """

    name: str
    thread: threading.Thread
    heartbeat: Heartbeat
    vital: bool


class Watch:
    """Watches all actors and loops. Its owner calls `look` every second or so."""

    def __init__(
        self,
        runtime: RuntimeState,
        *,
        patience: float = PATIENCE,
        observer: Observer | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._runtime = runtime
        self._patience = patience
        self._observer = observer or Observer()
        self._loops: dict[str, WatchedThread] = {}
        self._stuck: set[str] = set()
        self._looked_at = now()
        self._woke_at = 0.0
        self._round_every = min(LONGEST_ROUND, patience / 20)
        self._round_at = -inf

    def add(
        self,
        name: str,
        thread: threading.Thread,
        heartbeat: Heartbeat | None = None,
        *,
        vital: bool = True,
    ) -> None:
        """Watch a thread too: it must not end, and must not hang if it is `vital`."""
        # A heartbeat that never beats counts as that of an idle thread.
        heartbeat = heartbeat or Heartbeat()
        self._loops[name] = WatchedThread(
            name=name, thread=thread, heartbeat=heartbeat, vital=vital
        )

    def look(self) -> None:
        """Tell parents of hanging children; check which threads of replaced actors don't end."""
        now = self._now()
        if now - self._looked_at > FROZEN:
            # The whole process was held up, by SIGSTOP say: all actors start with fresh patience.
            self._woke_at = now
        self._looked_at = now
        if now >= self._round_at:
            self._round_at = now + self._round_every
            for parent, child in self._children():
                # Nearly all of thousands of actors are at ease.
                if not heartbeat_of(child).at_ease():
                    self._judge(parent, child, now)
        for loop in self._loops.copy().values():
            if not loop.vital:
                self._look_at(loop, now)
        self._runtime.departures.look(now, patience=self._patience, not_before=self._woke_at)

    def liveness(self) -> tuple[str, ...]:
        """Return why the process can't go on; empty while it can. From any thread, at once.

        Before the first `look`, and once the looks have ceased, no thread counts as hung.
        """
        return tuple(self._reasons(self._now()))

    def _reasons(self, now: float) -> Iterator[str]:
        if self._runtime.state is SystemState.STOPPING:
            return  # the shutdown has begun, and has a deadline of its own
        not_before = now if now - self._looked_at > FROZEN else self._woke_at
        supervisor = self._runtime.supervisor
        if supervisor is not None:
            heartbeat = heartbeat_of(supervisor)
            silent = self._silence(heartbeat, now, not_before)
            if silent is not None:
                yield f"the supervisor has hung for {silent:.0f} s: {heartbeat.where()}"
            elif not supervisor.is_alive() or heartbeat.ended:
                yield "the supervisor is dead"
        for loop in self._loops.values():
            silent = self._silence(loop.heartbeat, now, not_before)
            if silent is not None and loop.vital:
                yield f"the thread {loop.name} has hung for {silent:.0f} s"
            if not loop.thread.is_alive():
                yield f"the thread {loop.name} has ended"
        abandoned = len(self._runtime.departures.abandoned)
        if abandoned > MOST_ABANDONED:
            yield f"{abandoned} threads of replaced actors hang"

    def _silence(self, heartbeat: Heartbeat, now: float, not_before: float) -> float | None:
        """Return the seconds of a silence that is too long; None while it is not."""
        return heartbeat.overdue(now, patience=self._patience, not_before=not_before)

    def _look_at(self, loop: WatchedThread, now: float) -> None:
        """Log, once, that a loop that is not vital hangs."""
        silent = self._silence(loop.heartbeat, now, self._woke_at)
        if silent is None:
            self._stuck.discard(loop.name)
        elif loop.name not in self._stuck:
            self._stuck.add(loop.name)
            self._observer.actor_stuck("loop")
            error = f"it has hung for {silent:.0f} s: {where_is(loop.thread)}"
            log.error("loop.stuck", stuck=loop.name, error=error)

    def _judge(self, parent: Ref, child: Ref, now: float) -> None:
        heartbeat = heartbeat_of(child)
        silent = self._silence(heartbeat, now, self._woke_at)
        if silent is not None:
            error = f"it has hung for {silent:.0f} s: {heartbeat.where()}"
        elif child.is_alive() and heartbeat.ended:
            error = "its thread has ended without a word"
        else:
            heartbeat.stuck = False
            return
        if not heartbeat.stuck:
            # Told once, so as not to fill the parent's mailbox.
            heartbeat.stuck = True
            log.error("actor.stuck", stuck=heartbeat.name, error=error)
            tell(parent, ChildFailed(child=child, error=error, stuck=True))

    def _children(self) -> Iterator[tuple[Ref, Ref]]:
        """Yield every actor except the supervisor, as pairs of parent and child."""
        supervisor = self._runtime.supervisor
        if supervisor is None:
            return
        if self._runtime.reconciler is not None:
            yield supervisor, self._runtime.reconciler
        for runtime in self._runtime.tenants.copy().values():
            tenant, consumer = runtime.ref, runtime.consumer
            if tenant is None:
                continue
            yield supervisor, tenant
            if consumer is not None:
                yield tenant, consumer
            if runtime.workers:
                for worker in runtime.workers.copy().values():
                    yield tenant, worker
