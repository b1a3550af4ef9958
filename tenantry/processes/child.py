"""One process of several: started, restarted when it has ended by itself, stopped."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from tenantry.process.family import VARIABLE, Inherited

log: Final = structlog.get_logger("processes")

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
HEALTHY_SECONDS: Final = 60.0
"""How long a child has to live for its next end to count as the first failure again."""

BAD_CONFIGURATION: Final = 2
"""The exit code of a child that a restart can't help."""


class Child:
    """A daemon with a directory of its own. Belongs to its parent's main thread."""

    def __init__(
        self, number: int, directory: Path, environment: Mapping[str, str], shared: Inherited
    ) -> None:
        """`shared` has the sockets all children listen on; `parent` is replaced at each start."""
        self.number = number
        self.directory = directory
        self.restarts = 0
        self._environment = environment
        self._shared = shared
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._started_at = self._start_at = 0.0
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """The pid of its process, while it has one."""
        return None if self._process is None else self._process.pid

    @property
    def line(self) -> socket.socket | None:
        """The socket on which its requests arrive."""
        return self._line

    @property
    def socket_path(self) -> Path:
        """Its own control socket."""
        return self.directory / "control.sock"

    def look(self, now: float) -> int | None:
        """Start the child if it is due; return its exit code if it has just ended."""
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._ended(code, now)
        return code

    def send(self, number: int) -> None:
        """Send the child a signal, if it lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Wait for the child's end, or kill it after `seconds`; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            code = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            log.warning("process.killed", number=self.number, pid=process.pid)
        self._close()
        return code

    def _start(self, now: float) -> None:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        inherited = replace(self._shared, parent=theirs.fileno())
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenantry", "run"],
                stdin=subprocess.DEVNULL,
                # A terminal's Ctrl-C is to reach only the parent.
                process_group=0,
                pass_fds=inherited.descriptors,
                env={**self._environment, VARIABLE: inherited.write()},
            )
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        self._line = mine
        self._started_at = now
        log.info("process.started", number=self.number, pid=self._process.pid)

    def _ended(self, code: int, now: float) -> None:
        self._process = None
        self._close()
        self._failures = 1 if now - self._started_at >= HEALTHY_SECONDS else self._failures + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures - 1, 10))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._start_at = now + delay
        self.restarts += 1
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        log.error("process.ended", number=self.number, how=how, again_in=round(delay, 2))

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def environment_of(
    directory: Path, *, database_url: str, embedded: bool, name: str
) -> dict[str, str]:
    """Return a child's environment: the parent's, except what is per process or not for it."""
    without = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY",
               "RUNTIME_DIRECTORY", "TENANTRY_PROCESSES", "TENANTRY_CONTROL_SOCKET",
               "TENANTRY_METRICS_PORT"}  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if key not in without}
    own = {
        # The child finds the modules where this process found them, whatever its directory.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TENANTRY_STATE_DIR": str(directory),
        "TENANTRY_CONTROL_SOCKET": "",
        "TENANTRY_METRICS_PORT": "",
        "TENANTRY_PROCESSES": "1",
        "TENANTRY_NODE_NAME": name,
    }
    if embedded:
        own["DATABASE_URL"] = database_url
    return inherited | own
