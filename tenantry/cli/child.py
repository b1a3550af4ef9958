"""A daemon in a subprocess of the command: started, waited for, stopped; its log can be read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import tenantry
from tenantry.cli.client import ControlClient
from tenantry.cli.output import CommandError
from tenantry.settings import ENVIRONMENT

POLL: Final = 0.1
LAST_LINES: Final = 20
KILL_TIMEOUT: Final = 10.0

_FOREIGN: Final = (
    "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "STATE_DIRECTORY",
    "TENANTRY_CONFIG",
)  # fmt: skip


_OF_RABBITMQ: Final = (
    "RABBITMQ_MANAGEMENT_URL", "RABBITMQ_CA_FILE", "RABBITMQ_CERT_FILE", "RABBITMQ_KEY_FILE",
)  # fmt: skip


class ChildDaemon:
    """`tenantry run` in a subprocess that keeps everything in `directory`.

    With `broker`, a URL, it uses that broker. The rest of the caller's configuration does not reach
    it, except the environment's variables for connections to RabbitMQ.
    """

    def __init__(self, directory: Path, broker: str = "") -> None:
        self.log = directory / "daemon.log"
        self.socket = directory / "control.sock"
        self._directory = directory
        self._broker = broker
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon; `wait_ready` returns once it consumes."""
        empty = self._directory / "config.toml"
        empty.touch(mode=0o600)
        mine = {variable for variable, _ in ENVIRONMENT.values()} | set(_FOREIGN)
        if self._broker:
            mine -= set(_OF_RABBITMQ)
        inherited = {key: value for key, value in os.environ.items() if key not in mine}
        root = str(Path(tenantry.__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        environment = {
            "TENANTRY_CONFIG": str(empty),
            "TENANTRY_STATE_DIR": str(self._directory),
            "TENANTRY_SERVER_PORT": "0",
            "TENANTRY_LOG_FORMAT": "json",
            "BROKER_URL": self._broker,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenantry.cli.main", "run"],
                cwd=self._directory,
                env={**inherited, "PYTHONPATH": path, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal goes to the parent only, which stops the daemon in order.
                start_new_session=True,
            )

    def client(self, timeout: float = 60.0) -> ControlClient:
        """Make a client of the daemon's control socket."""
        return ControlClient(self.socket, timeout=timeout)

    def wait_ready(self, timeout: float) -> None:
        """Return once the daemon consumes. Raises `CommandError` if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        with self.client(timeout=5.0) as client:
            while True:
                self.check()
                try:
                    if client.send("GET", "/readyz")[0] == 200:
                        return
                except CommandError:
                    pass  # not there yet
                if time.monotonic() >= deadline:
                    raise CommandError(f"the daemon was not ready within {timeout:g} s")
                time.sleep(POLL)

    @property
    def running(self) -> bool:
        """Whether the daemon has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise `CommandError` if the daemon has ended by itself."""
        if not self.running:
            code = None if self._process is None else self._process.returncode
            reason = next((line for line in reversed(self._lines()) if line[:1] != "{"), "")
            told = f": {reason}" if reason else ""
            raise CommandError(f"the daemon ended by itself (exit status {code}){told}")

    def drain(self, timeout: float) -> int:
        """Shut the daemon down gracefully, unless it has ended, and return its exit status.

        Raises `CommandError` if it takes too long.
        """
        process = self._process
        if process is None:
            raise CommandError("the daemon was not started")
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CommandError(f"the daemon did not shut down within {timeout:g} s") from None

    def stop(self, timeout: float) -> None:
        """End the daemon, gracefully or else by force; harmless if it has ended."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait(KILL_TIMEOUT)

    def last_words(self) -> str:
        """Return the last lines of the daemon's log."""
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return lines[-LAST_LINES:]
