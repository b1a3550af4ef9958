"""The clock of one daemon, stepped while it runs, and with it that of the processes it starts.

Only what tells the time of day is stepped. What measures how long something takes goes on, as it
does where an operator or NTP sets a machine's clock.
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
"""Seconds by which a daemon's time may differ from what it is to be: less than any step."""


class Clock:
    """A daemon's clock. To be made before the daemon is started."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._file = program.directory / "clock"
        self._offset = 0
        self._write()
        program.own_interpreter = True  # one that is forked has begun with the machine's clock
        path = program.environment()["PYTHONPATH"]
        program.settings |= {
            "PYTHONPATH": os.pathsep.join((str(STEPPED), path)),
            "STEPPED_CLOCK": str(self._file),
        }

    def step(self, seconds: int) -> None:
        """Set it so many seconds before or behind the machine's, wherever it was."""
        self._offset = seconds
        self._write()

    def is_stepped(self) -> bool:
        """Tell whether the daemon goes by it, as the date of its answers says."""
        told = parsedate_to_datetime(self._program.call("GET", "/livez").headers["date"])
        return abs(told.timestamp() - time.time() - self._offset) < NEAR

    def _write(self) -> None:
        # In one go: the daemon may read it at any moment.
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+d}\n", encoding="ascii")
        new.replace(self._file)
