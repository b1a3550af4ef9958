"""Threads with an owner: each start beside its stop, joined, and watched while they run.

They include the threads of the daemon's periodic work.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, Protocol

import structlog

from tenantry.database.failures import one_line
from tenantry.loops import Heartbeat, Loop, PeriodicService
from tenantry.unavailable import UnavailableError

log: Final = structlog.get_logger("daemon")

JOIN_TIMEOUT: Final = 5.0
"""Seconds a thread has to end, once it has been told to."""

LONGEST_STEP: Final = 1800.0
"""Seconds after which scheduled work counts as hung: an audit counts for a minute and one tenant
more, a proof tries one tenant on twenty others."""

WAITING_SLOTS: Final = 4096
"""Slots of the kernel's table of waiting threads, a power of two; each takes 64 bytes."""

_PR_FUTEX_HASH: Final = 78
_PR_FUTEX_HASH_SET_SLOTS: Final = 1


def allow_many_waiting_threads() -> bool:
    """Let thousands of threads wait without making every wake-up slow; tell whether that helps.

    Two threads a tenant wait nearly all the time. Since 6.17 Linux keeps the waiting threads of a
    process in a table of its own, of four slots a processor. Each wake-up, and so each change of
    who has the interpreter, walks through a slot: 1,250 of 20,000 threads on two processors. Older
    kernels, which have one large table, refuse, and so may a sandbox.

    Source: PR_FUTEX_HASH_SET_SLOTS(2const) of the Linux manual.
    """
    if sys.platform != "linux":
        return False
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return False
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    return bool(prctl(_PR_FUTEX_HASH, _PR_FUTEX_HASH_SET_SLOTS, WAITING_SLOTS, 0, 0) == 0)


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


class StoppedError(Exception):
    """Work in several steps ends with the latest, as its thread is to end."""


class Schedules:
    """Periodic work, each kind on a thread of its own; while `when` returns False, it rests.

    A failure is logged, and the work is tried again at its next time: a failure that one tenant's
    data causes must not end every daemon again and again.
    """

    def __init__(self, threads: Threads, stack: ExitStack, when: Callable[[], bool]) -> None:
        self._threads = threads
        self._stack = stack
        self._when = when

    def every(
        self, seconds: float, name: str, work: Callable[[Callable[[], None]], object]
    ) -> None:
        """Do `work` every so many seconds; never, if that is 0.

        `work` gets a function to call between its steps, so that it does not count as hung. That
        raises `StoppedError` when the work is to end.
        """

        def go_on() -> None:
            service.go_on()
            if service.stopping:
                raise StoppedError

        def turn() -> None:
            with suppress(StoppedError):
                work(go_on)

        if seconds:
            service = PeriodicService(
                turn,
                every=seconds,
                longest=LONGEST_STEP,
                jitter=0.2,  # so that daemons started together don't ask all at once
                on_error=lambda error: self._failed(name, error),
                when=self._when,
            )
            self._threads.start(name, service, vital=False)

    def at_last(self, name: str, work: Callable[[], object]) -> None:
        """Do `work` once when the stack unwinds: after all work scheduled later has ended."""

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
