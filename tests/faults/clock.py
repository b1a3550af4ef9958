"""Steps the clock of one daemon while it runs, and that of the processes it starts.

Only the time of day is stepped. Monotonic clocks go on, as they do when an operator or NTP sets a
machine's clock.
"""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from tests.acceptance.program import Program

STEPPED: Final = Path(__file__).parent / "stepped"
NEAR: Final = 30.0
"""Seconds by which a daemon's time may differ from the expected one: less than any step."""


class Clock:
    """A daemon's clock. Make it before the daemon is started."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._file = program.directory / "clock"
        self._offset = 0
        self._write()
        program.own_interpreter = True  # a forked process has begun with the machine's clock
        path = program.environment()["PYTHONPATH"]
        program.settings |= {
            "PYTHONPATH": os.pathsep.join((str(STEPPED), path)),
            "STEPPED_CLOCK": str(self._file),
        }

    def step(self, seconds: int) -> None:
        """Set the clock to the machine's time plus `seconds`, whatever it showed before."""
        self._offset = seconds
        self._write()

    def is_stepped(self) -> bool:
        """Tell whether the daemon uses this time, by the `Date` header of its answers."""
        told = parsedate_to_datetime(self._program.call("GET", "/healthz").headers["date"])
        return abs(told.timestamp() - time.time() - self._offset) < NEAR

    def _write(self) -> None:
        # Replaced atomically: the daemon may read the file at any moment.
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+d}\n", encoding="ascii")
        new.replace(self._file)
