"""The process in its first moments: its signals while modules are loaded, and being process 1.

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
            signal.signal(number, end_while_starting)
        # Nothing is there to be reloaded yet. (Were it ignored, children would inherit that.)
        signal.signal(signal.SIGHUP, ignore)


def end_while_starting(number: int, _frame: FrameType | None) -> None:
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


def ignore(_number: int, _frame: FrameType | None) -> None:
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


LASTING: Final = frozenset({"run", "demo"})
"""Commands that go on for so long that it matters."""

PASSED_ON: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)


def stand_before(arguments: Sequence[str]) -> None:
    """Where this is process 1, go on in a child of it, and come back there.

    Process 1 stays as small as it is now: it passes signals on, takes the exit status of whatever
    ends, and ends as the child does. So nobody waits for a process that is the program's own.
    """
    if os.getpid() == 1 and command_of(arguments) in LASTING:
        _split()


def _split() -> None:
    heard = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    child = os.fork()
    if child == 0:
        # A terminal's Ctrl-C reaches process 1 alone, and from there this one, once.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_look_after(child, heard))


def _look_after(child: int, heard: set[signal.Signals]) -> int:
    while True:
        number = signal.sigwait(heard)
        if number != signal.SIGCHLD:
            os.kill(child, number)  # it is there, if only to be buried
            continue
        status = _bury(child)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _bury(child: int) -> int | None:
    """Take the status of all that have ended; give the child's."""
    found: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status
