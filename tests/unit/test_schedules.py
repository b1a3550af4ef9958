"""Periodic work goes on in steps, and ends between two of them when the daemon stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from structlog.testing import capture_logs

from tenantry.loops import Heartbeat
from tenantry.process.threads import Schedules, Threads
from tests.waiting import DEADLINE


def unwatched(
    name: str, thread: threading.Thread, heartbeat: Heartbeat | None, *, vital: bool
) -> None:
    """Watch nothing."""


def test_work_that_still_has_many_steps_to_do_ends_after_the_latest_and_cleans_up() -> None:
    under_way, cleaned_up = threading.Event(), threading.Event()

    def work(go_on: Callable[[], None]) -> None:
        try:
            while True:
                go_on()
                under_way.set()
        finally:
            cleaned_up.set()

    with capture_logs() as logged:
        with ExitStack() as stack:
            schedules = Schedules(Threads(stack, unwatched), stack, lambda: True)
            schedules.every(0.001, "work", work)
            assert under_way.wait(DEADLINE)
        assert cleaned_up.is_set()
    assert logged == []
