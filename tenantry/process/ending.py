"""The end of a process that can't go on: it comes, whatever hangs."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final, NoReturn

DRAIN_SECONDS: Final = 5.0
"""What such a process is given to drain; the broker redelivers what is not finished."""

END_SECONDS: Final = 20.0
"""What it is given for all of its end: whoever started it waits to start it anew."""


def end_at_latest(seconds: float = END_SECONDS) -> None:
    """End the process with exit 1 in so many seconds, unless it has ended by itself."""
    timer = threading.Timer(seconds, _end)
    timer.daemon = True
    timer.start()


def _end() -> NoReturn:
    os.write(sys.stderr.fileno(), b"tenantry: it does not end by itself, ending at once\n")
    os._exit(1)
