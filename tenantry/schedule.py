"""Something that is done now and then, on a thread of its own."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final

import structlog

from tenantry.telemetry.heartbeat import Heartbeat

log = structlog.get_logger(__name__)


class Schedule:
    """Does `work` every so many `seconds`, the first time after some of them.

    `run` belongs on a thread of its own, until `stop`. An attempt that raises is logged, and does
    not end it. While `when` says no, a turn is left out. `work` gets a function to
    call between its steps: one that takes longer than `longest` seconds shows in `heartbeat`.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Callable[[], None]], object],
        *,
        seconds: float,
        longest: float,
        when: Callable[[], bool] = lambda: True,
    ) -> None:
        self._name = name
        self._work = work
        self.heartbeat: Final = Heartbeat()
        self._seconds = seconds
        self._longest = longest
        self._when = when
        self._stopping = threading.Event()

    def run(self) -> None:
        """Wait and work in turns."""
        # With jitter, so that daemons started together don't ask all at once.
        while not self._stopping.wait(self._seconds * random.uniform(0.8, 1.0)):  # noqa: S311
            if not self._when():
                continue
            self._go_on()
            try:
                self._work(self._go_on)
            except Exception as error:  # noqa: BLE001 - the next turn may go better
                log.warning("schedule.failed", work=self._name, error=str(error))
            self.heartbeat.rest()

    def stop(self) -> None:
        """End `run`, once the work under way is done; harmless twice."""
        self._stopping.set()

    def _go_on(self) -> None:
        self.heartbeat.beat(self._longest)
