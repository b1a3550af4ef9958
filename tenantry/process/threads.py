"""Threads with an owner: each start beside its stop, joined, and watched while they run."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Final, Protocol

import structlog

from tenantry.loops import Heartbeat, Loop

log: Final = structlog.get_logger("daemon")

JOIN_TIMEOUT: Final = 5.0
"""Seconds a thread is given to end, once it has been told to."""


class Watched(Protocol):
    """Is told of a thread that runs: its heartbeat, if it has one; what follows if it hangs."""

    def __call__(
        self, name: str, thread: threading.Thread, heartbeat: Heartbeat | None, *, vital: bool
    ) -> None:
        """Hear of it, on the thread that has started it."""


class Threads:
    """Starts threads; when `stack` unwinds, each is stopped and joined, the last one first.

    `watched` is told of every one.
    """

    def __init__(self, stack: ExitStack, watched: Watched) -> None:
        self._stack = stack
        self._watched = watched

    def start(self, name: str, what: Loop, *, vital: bool = True) -> None:
        """Run something on a thread of its own; its `heartbeat`, if it has one, is watched too.

        If it hangs, the process ends, unless it is not `vital`: then that is told and counted.
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
