"""Threads with an owner: each start beside its stop, joined, and watched while they run.

Among them those of what the daemon does every so often, beside what it is there for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Protocol

import structlog

from tenantry.database.failures import one_line
from tenantry.loops import Heartbeat, Loop, PeriodicService
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("daemon")

JOIN_TIMEOUT: Final = 5.0
"""Seconds a thread has to end, once it has been told to."""

LONGEST_STEP: Final = 1800.0
"""Seconds after which work on a schedule is said to hang: an audit counts for a minute and one
tenant more, a proof tries one tenant on twenty others."""


class Watched(Protocol):
    """Is told of each started thread: its heartbeat, if it has one, and whether it is vital."""

    def __call__(
        self, name: str, thread: threading.Thread, heartbeat: Heartbeat | None, *, vital: bool
    ) -> None:
        """Take note of a thread; called on the thread that has started it."""


class Threads:
    """Starts threads; when `stack` unwinds, each is stopped and joined, the last one first.

    `watched` is told of every thread.
    """

    def __init__(self, stack: ExitStack, watched: Watched) -> None:
        self._stack = stack
        self._watched = watched

    def start(self, name: str, what: Loop, *, vital: bool = True) -> None:
        """Run a loop on a thread of its own; its `heartbeat`, if it has one, is watched too.

        If the loop hangs, the process ends, unless it is not `vital`: then that is logged and
        counted.
        """

        def guarded() -> None:
            try:
                what.run()
            except Exception:
                log.exception("thread.failed", thread=name)

        thread = threading.Thread(target=guarded, name=name, daemon=True)

        def join() -> None:
            thread.join(JOIN_TIMEOUT)
            if thread.is_alive():
                log.warning("thread.does_not_end", thread=name)

        self._stack.callback(join)
        self._stack.callback(what.stop)
        thread.start()
        self._watched(name, thread, getattr(what, "heartbeat", None), vital=vital)


class Schedules:
    """Work that comes again and again, each on a thread of its own; while `when` says no, it rests.

    What fails is told, and tried again at its time: what one tenant's data set off must not end
    every daemon anew.
    """

    def __init__(self, threads: Threads, stack: ExitStack, when: Callable[[], bool]) -> None:
        self._threads = threads
        self._stack = stack
        self._when = when

    def every(
        self, seconds: float, name: str, work: Callable[[Callable[[], None]], object]
    ) -> None:
        """Do something every so many seconds; never, where that is 0.

        `work` is given what it calls between its steps, so that it is not said to hang.
        """
        if seconds:
            service = PeriodicService(
                lambda: work(service.go_on),
                every=seconds,
                longest=LONGEST_STEP,
                jitter=0.2,  # so that daemons started together don't ask all at once
                on_error=lambda error: self._failed(name, error),
                when=self._when,
            )
            self._threads.start(name, service, vital=False)

    def at_last(self, name: str, work: Callable[[], object]) -> None:
        """Do something once when the stack unwinds: after what is scheduled from here on."""

        def once() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - what follows is closed in order all the same
                self._failed(name, error)

        self._stack.callback(once)

    def _failed(self, name: str, error: Exception) -> None:
        foreseen = isinstance(error, UnavailableError)
        log.warning(
            "schedule.failed",
            work=name,
            error=one_line(error),
            exc_info=None if foreseen else error,
        )
