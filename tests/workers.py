"""The test run's workers, forked from a process that has imported all tests.

To import the tests, and all that they test, is most of what a worker does before its first one;
six do the same. So one process imports them, and what it forks goes on as a worker of xdist's does:
it is told by its standard input what to run. Where there is no `tests.preloaded`, workers start as
they are.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from execnet import gateway_io
from execnet.gateway_base import ExecModel, Popen2IO

from tests import preloaded, scratch
from tests.waiting import DEADLINE

COMMAND = (sys.executable, "-m", "tests.workers")


class Workers:
    """The process that has imported what a run will collect; `start` has xdist fork from it."""

    variables = ()

    def __init__(self) -> None:
        self.arguments: Sequence[str] = ()
        """What the run collects, as given to pytest."""
        self._directory: Path | None = None
        self._process: preloaded.Popen | None = None
        self._forked: list[preloaded.Popen] = []

    def start(self) -> None:
        if self._process is not None or not preloaded.available():
            return
        self._directory = scratch.short("tenantry-test-workers-")
        address = str(self._directory / "socket")
        self._process = preloaded.Popen(
            [*COMMAND, address, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline():
            gateway_io.Popen2IOMaster = _forked_at(address, self._forked)  # type: ignore[misc]

    def pytest_keyboard_interrupt(self) -> None:
        """Do for the workers what a terminal does for the run's other processes on Ctrl-C."""
        for worker in self._forked:
            worker.send_signal(signal.SIGINT)

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait(DEADLINE)
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _forked_at(address: str, forked: list[preloaded.Popen]) -> type[gateway_io.Popen2IOMaster]:
    class Forked(gateway_io.Popen2IOMaster):
        """Starts a worker there, whatever its command line would be."""

        def __init__(self, _args: Sequence[str], execmodel: ExecModel) -> None:
            self.popen = preloaded.Popen(
                COMMAND, address=address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            forked.append(self.popen)
            Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)

    return Forked


def _import(arguments: Sequence[str]) -> None:
    """Import what pytest collects, in silence: what is wrong there each worker tells."""
    said = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    pytest.main(["--collect-only", "-qq", "-n", "0", "-p", "no:cacheprovider", *arguments])
    # What is left in the buffer would come out where xdist speaks to the worker.
    sys.stdout.flush()
    os.dup2(said, 1)
    os.close(said)


def main() -> object:
    """Import, say so, and fork; or, forked, run what comes in, as xdist's own workers do."""
    if not sys.argv[1:]:
        exec(eval(sys.stdin.readline()), {"__name__": "__main__"})
        return 0
    address, *arguments = sys.argv[1:]
    _import(arguments)
    if threading.active_count() > 1:
        return 1  # a fork of a process with threads is not to be trusted
    server = preloaded.Server(address)
    gc.collect()
    gc.freeze()
    os.write(1, b"imported\n")
    return server.serve()()
