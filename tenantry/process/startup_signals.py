"""The process in its first moments: its signals while modules are loaded, and being process 1.

Imported before everything else, so it may need only the standard library's smallest modules.
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
    """If the daemon is to run, let SIGTERM and SIGINT end it in order, and ignore SIGHUP.

    `arguments` are those of the command line; for any other command nothing changes.
    """
    if command_of(arguments) == "run":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end_while_starting)
        # There is nothing to reload yet. (SIG_IGN would be inherited by children.)
        signal.signal(signal.SIGHUP, ignore)


def end_while_starting(number: int, _frame: FrameType | None) -> None:
    """End the process, which has not begun any work."""
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
    """Return the command that a command line names."""
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
"""Commands that run long enough for being process 1 to matter."""

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
    """As process 1, fork, and return in the child.

    Process 1 stays as small as it is now: it passes signals on, reaps every process that ends, and
    exits as the child does. So it never reaps a process that the program itself waits for.
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
            os.kill(child, number)  # it exists, at least as a zombie
            continue
        status = _bury(child)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _bury(child: int) -> int | None:
    """Reap all ended processes; return the child's status, if it is among them."""
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
