"""A private RabbitMQ node: embedded in the daemon's life, or in a test's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

import httpx

from tenantry.broker.port import BrokerError
from tests.rabbitmq_node_setup import (
    ALONE,
    USERNAME,
    NodeFiles,
    Ports,
    Server,
    arguments,
    choose_ports,
    configuration,
    environment,
    find_server,
    prepare,
    write_private,
)

_ATTEMPTS: Final = 3
_LOCK_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05
_PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"


class PrivateNode:
    """A RabbitMQ node of our own, with its data in `directory`.

    It listens on a loopback address only, 127.0.0.1 where it is alone, with the management plugin
    and a random admin password, and keeps data, password and (where still free) ports from one
    start to the next. It dies when this process does, however that goes; Ctrl-C on the terminal
    does not reach it.
    Not for several threads at once.
    """

    def __init__(self, directory: Path, *, host: str = ALONE, peers: Sequence[str] = ()) -> None:
        """With `peers`, the addresses of a cluster's nodes, it is one of these."""
        self._files = NodeFiles(directory=directory.absolute(), host=host, peers=tuple(peers))
        self._password = ""
        self._ports: Ports | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._finalizer: weakref.finalize[..., PrivateNode] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._files.directory)!r})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """Where all of the node's files are."""
        return self._files.directory

    @property
    def url(self) -> str:
        """The AMQP URL of the admin user, with its password."""
        return f"amqp://{USERNAME}:{self._password}@{self.place}/%2F"

    @property
    def place(self) -> str:
        """Where AMQP is spoken, as HOST:PORT."""
        return f"{self._files.host}:{self._started().amqp}"

    @property
    def management_url(self) -> str:
        """The URL of the management API, with the admin user's password."""
        place = f"{self._files.host}:{self._started().management}"
        return f"http://{USERNAME}:{self._password}@{place}"

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang machine, None unless it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, timeout: float = 90) -> None:
        """Start, and return once AMQP and management answer. Nothing, if it runs already.

        Raises `BrokerError` with the last lines of the log where it does not come up within
        `timeout` seconds; nothing is left running then.
        """
        if self.pid is not None:
            return
        self._end_process(grace=0)
        deadline = time.monotonic() + timeout
        server = find_server()
        self._password = prepare(self._files)
        self._acquire_lock()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                # After a kill the clients' URLs shall still hold: ports stay while they can.
                self._ports = choose_ports(self._files)
                self._launch(server, self._ports)
                problem = self._wait_until_ready(deadline)
                if problem is None:
                    return
                self._end_process(grace=0)
                if attempt == _ATTEMPTS or not self._port_was_taken():
                    self._fail(problem)
        except BaseException:
            self.stop(grace=0)
            raise

    def stop(self, grace: float = 15) -> None:
        """End the node and free the directory; harmless if it does not run.

        It has `grace` seconds to shut down in order, and is killed then. 0 kills it at once:
        for a directory that is not needed any more.
        """
        self._end_process(grace=grace)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def kill(self) -> None:
        """Kill the node without warning, as a fault would; `start` brings it back.

        Of a quorum queue declared less than a second before, RabbitMQ may then have lost what
        it needs to elect a leader: let queues grow older than that before killing their node.
        """
        self._end_process(grace=0)

    def restart(self, timeout: float = 90) -> None:
        """Stop in order and start again, on the same ports where they are still free."""
        self._end_process(grace=15)
        self.start(timeout)

    def _started(self) -> Ports:
        if self._ports is None:
            raise BrokerError("the embedded RabbitMQ has not been started")
        return self._ports

    def _acquire_lock(self) -> None:
        """Take the directory; the node inherits the lock, so that it holds as long as it lives."""
        if self._lock is not None:
            return
        descriptor = os.open(self._files.lock, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A node that has lost its parent needs some seconds to go.
                if time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    continue
                os.close(descriptor)
                raise BrokerError(
                    f"{self._files.directory} is in use by another broker; stop that one first"
                ) from None
            self._lock = descriptor
            return

    def _launch(self, server: Server, ports: Ports) -> None:
        assert self._lock is not None  # `start` takes it first
        write_private(self._files.configuration, configuration(self._files, ports, self._password))
        with self._files.console.open("wb") as console:
            process = subprocess.Popen(
                arguments(server, self._files, ports),
                cwd=self._files.directory,
                env=environment(self._files, ports, os.environ),
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process, os.getpid(), 5.0)

    def _wait_until_ready(self, deadline: float) -> str | None:
        """Give None once the node serves, else what is wrong with it."""
        ports, process = self._ports, self._process
        assert ports is not None  # set together by `start`
        assert process is not None
        waiting_for: list[tuple[str, Callable[[], bool]]] = [
            ("AMQP", lambda: _speaks_amqp(self._files.host, ports.amqp)),
            ("management", lambda: _manages(self.management_url)),
        ]
        while waiting_for:
            name, answers = waiting_for[0]
            if process.poll() is not None:
                return f"ended while starting (exit status {process.returncode})"
            if answers():
                waiting_for.pop(0)
            elif time.monotonic() > deadline:
                return f"did not start in time ({name} does not answer)"
            else:
                time.sleep(_POLL_SECONDS)
        return None

    def _fail(self, problem: str) -> NoReturn:
        raise BrokerError(
            f"the embedded RabbitMQ {problem}; its log in {self._files.log.parent} ends:\n"
            + self._last_lines()
        )

    def _end_process(self, *, grace: float) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if self._process is not None:
            _end(self._process, os.getpid(), grace)
            self._process = None

    def _port_was_taken(self) -> bool:
        return any(word in self._last_lines(200) for word in ("eaddrinuse", "already_in_use"))

    def _last_lines(self, count: int = 15) -> str:
        lines: list[str] = []
        for path in (self._files.console, self._files.log):
            with contextlib.suppress(OSError):
                text = path.read_text(encoding="utf-8", errors="replace")
                lines += [line for line in text.splitlines() if line.strip()][-count:]
        return "\n".join(lines)


def _end(process: subprocess.Popen[bytes], parent: int, grace: float) -> None:
    """End the process and what it has left in its group."""
    if os.getpid() != parent:
        return  # a fork of ours is ending, not we
    # Of a process reaped long ago the number may be another's by now.
    if process.returncode is None:
        if grace > 0:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        # The group keeps its number as long as it has members.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    if process.stdin is not None:
        process.stdin.close()


def _speaks_amqp(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(_PROTOCOL_HEADER)
            # A method frame (type 1): Connection.Start.
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _manages(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/whoami", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False
