"""An Iggy server of a test's own: on free ports of 127.0.0.1, in a directory of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tenantry.broker.iggy.client import Access, Session
from tenantry.broker.port import BrokerError
from tests.ports import free_port

USER, PASSWORD = "iggy-root", "root-of-the-tests"


class PrivateIggy:
    """A server that is started, killed, started again with what it had, and stopped."""

    def __init__(
        self, program: Path, directory: Path, *, certificate: tuple[Path, Path] | None = None
    ) -> None:
        """With a `certificate` and its key it speaks TLS, and is waited for without."""
        self._certificate = certificate
        self._program = program
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._leash: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        scheme = "iggy" if self._certificate is None else "iggys"
        return f"{scheme}://{USER}:{PASSWORD}@{self.address}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._program],
                cwd=self._directory,
                env={**_BASE, **self._settings()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # Where this process is killed, its end of the pipe closes, and the server ends with it.
        self._leash = subprocess.Popen(
            ["/bin/sh", "-c", 'read over; kill -9 "$0"', str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        until = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the Iggy server does not start:\n{self.output()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._let_go()
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        if self._process is None:
            return
        self._let_go()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _let_go(self) -> None:
        """End who watches over the server, whose number may soon be another process's."""
        leash, self._leash = self._leash, None
        if leash is not None:
            leash.kill()
            leash.communicate()

    def output(self) -> str:
        return (self._directory / "output.log").read_text("utf-8", "replace")

    def _answers(self) -> bool:
        """Tell whether it lets somebody in: at first it takes connections and gives them up."""
        try:
            if self._certificate is None:
                Session(Access.of(self.url)).close()
            else:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except (BrokerError, OSError):
            return False
        return True

    def _settings(self) -> dict[str, str]:
        secured: dict[str, str] = {}
        if self._certificate is not None:
            secured = {
                "IGGY_TCP_TLS_ENABLED": "true",
                "IGGY_TCP_TLS_SELF_SIGNED": "false",
                "IGGY_TCP_TLS_CERT_FILE": str(self._certificate[0]),
                "IGGY_TCP_TLS_KEY_FILE": str(self._certificate[1]),
            }
        return {
            **secured,
            "IGGY_SYSTEM_PATH": str(self._directory / "data"),
            "IGGY_TCP_ADDRESS": self.address,
            "IGGY_HTTP_ENABLED": "false",
            "IGGY_QUIC_ENABLED": "false",
            "IGGY_WEBSOCKET_ENABLED": "false",
            "IGGY_ROOT_USERNAME": USER,
            "IGGY_ROOT_PASSWORD": PASSWORD,
            "IGGY_SYSTEM_SHARDING_CPU_ALLOCATION": "1",
            "IGGY_SYSTEM_SHARDING_PIN_CORES": "false",
            "IGGY_SYSTEM_MEMORY_POOL_SIZE": "512 MiB",
        }


_BASE = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
