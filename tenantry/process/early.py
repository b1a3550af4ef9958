"""Signals in the moments before the daemon can hear them: while its modules are still loaded.

Imported before everything else, so the standard library's smallest modules are all it may need.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

_WITH_VALUE: Final = frozenset({"--config"})
"""Options of the program itself that are followed by a value."""


def hear(arguments: Sequence[str]) -> None:
    """Make SIGTERM and SIGINT an end in order, and SIGHUP harmless, if the daemon is to run.

    `arguments` are those of the command line; for any other command nothing changes.
    """
    if command_of(arguments) == "run":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        # Nothing is there to be reloaded yet. (Were it ignored, children would inherit that.)
        signal.signal(signal.SIGHUP, wait)


def end(number: int, _frame: FrameType | None) -> None:
    """End the process: it has not begun anything."""
    name = signal.Signals(number).name
    line = (
        f"tenantry: stopped by {name} while starting\n"
        if os.isatty(sys.stderr.fileno())
        else '{"level": "info", "logger": "daemon", "event": "daemon.stopped_while_starting", '
        f'"signal": "{name}"}}\n'
    )
    os.write(sys.stderr.fileno(), line.encode())
    os._exit(0)


def wait(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def command_of(arguments: Sequence[str]) -> str | None:
    """Tell which command a command line is for."""
    value_follows = False
    for argument in arguments:
        if value_follows:
            value_follows = False
        elif argument in _WITH_VALUE:
            value_follows = True
        elif not argument.startswith("-"):
            return argument
    return None
