"""The daemon's side of its front: the process that serves HTTP on TCP."""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import IO, Final

import structlog

from tenantry.front import messages
from tenantry.http.listeners import ListenError, Relay, bind_tcp, tls_context
from tenantry.http.provider import Provider
from tenantry.loops import Heartbeat
from tenantry.process.start_checks import export_of
from tenantry.settings import Settings
from tenantry.tracing.lost import shared_file

log = structlog.get_logger("front")

BIND_SECONDS: Final = 1.0
BIND_AGAIN: Final = 0.05
END_SECONDS: Final = 12.0
"""How long the front may take to let its requests end."""

KILL_SECONDS: Final = 5.0
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
LONGEST_LAUNCH: Final = 60.0
"""Seconds after which a launch counts as hung: it only starts a process and writes a few lines."""

HEALTHY_SECONDS: Final = 30.0
"""How long a front has to live for its next failure to count as the first one again."""


def _bind(address: tuple[str, int]) -> socket.socket:
    """Listen; retry while the front of a daemon that was killed a moment ago may still end."""
    until = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return bind_tcp(*address)
        except ListenError:
            if time.monotonic() > until:
                raise
            time.sleep(BIND_AGAIN)


def _serves(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a front has reported, which it does once, that it serves."""
    if process.stdout is None:
        return False
    readable, _, _ = select.select([process.stdout], [], [], 0)
    return bool(readable)


class Front:
    """Runs the front, and starts it again when it ends by itself. Its owner calls `run`.

    The daemon owns the listening socket: while the front is away, clients wait in the socket's
    queue.
    """

    def __init__(self, settings: Settings, relay: Relay) -> None:
        self.heartbeat: Final = Heartbeat()
        self._settings = settings
        self._relay = relay
        self._secrets = settings.security.secrets
        self._provider = Provider.of(settings)
        self._tracing = export_of(settings)
        self.lost_spans: IO[bytes] | None = None
        """The file in which the front counts lost spans; None without tracing."""
        self._socket: socket.socket | None = None
        self._backends: messages.WorkWith | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self.port: int | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The id of the process that serves now."""
        process = self._process
        return None if process is None else process.pid

    def bind(self) -> None:
        """Listen on the address. Raises `ListenError`, also for TLS files that can't be used."""
        server = self._settings.server
        if server.tls is not None:
            tls_context(*server.tls)
        self._socket = _bind((server.host, server.port))
        self.port = self._socket.getsockname()[1]
        if self._tracing is not None:
            self.lost_spans = shared_file()
            self._tracing = replace(self._tracing, lost_in=self.lost_spans.fileno())

    def run(self) -> None:
        """Keep a front running until `stop`."""
        failures = 0
        try:
            while not self._stopping.is_set():
                self.heartbeat.beat(LONGEST_LAUNCH)
                try:
                    process = self._launch()
                except OSError as error:
                    self.heartbeat.rest()
                    log.critical("front.not_started", error=str(error))
                    self._stopping.wait(LONGEST_DELAY)
                    continue
                self.heartbeat.rest()
                if process is None:
                    return
                with suppress(subprocess.TimeoutExpired):
                    process.wait(HEALTHY_SECONDS)
                    failures += 1
                if process.poll() is None:
                    failures = 0
                    process.wait()
                if self._stopping.is_set():
                    return
                self.restarts += 1
                delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures, 10))
                delay *= random.uniform(0.5, 1.0)  # noqa: S311
                log.error("front.ended", status=process.returncode, again_in=round(delay, 2))
                self._stopping.wait(delay)
        finally:
            self._close()

    def work_with(self, backends: messages.WorkWith) -> None:
        """Have the front use `backends` from now on, and do itself what it can with them."""
        with self._guard:
            self._backends = backends
            self._tell(backends)

    def trust(self, secrets: Sequence[str]) -> None:
        """Have the front take tokens signed with these secrets, and no others, from now on."""
        with self._guard:
            self._secrets = tuple(secrets)
            self._tell(messages.Trust(secrets=list(secrets)))

    def stop(self) -> None:
        """Let the front finish its requests and end; kill it after `END_SECONDS`."""
        self._stopping.set()
        with self._guard:
            process = self._process
            self._tell(messages.Stop())
            if process is not None and process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        if process is None:
            self._close()
            return
        if not _serves(process):
            process.kill()  # still loading: it has accepted no request
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("front.killed", after_seconds=END_SECONDS)
            process.kill()
            process.wait(KILL_SECONDS)

    def _close(self) -> None:
        for one in (self._socket, self.lost_spans):
            if one is not None:
                one.close()

    def _launch(self) -> subprocess.Popen[bytes] | None:
        """Start a front and send it its messages; None if `stop` was called meanwhile."""
        assert self._socket is not None  # noqa: S101 - bound before it is run
        descriptor, relay = self._socket.fileno(), self._relay.far.fileno()
        with self._guard:
            if self._stopping.is_set():
                return None
            counted = [] if self.lost_spans is None else [self.lost_spans.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenantry.front"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A terminal's Ctrl-C goes to the daemon only.
                process_group=0,
                pass_fds=[descriptor, relay, *counted],
                # The front imports from the same places as this process.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            tls, log_settings = self._settings.server.tls, self._settings.log
            self._tell(
                messages.Serve(
                    descriptor=descriptor,
                    relay=relay,
                    secrets=list(self._secrets),
                    provider=None if self._provider is None else asdict(self._provider),
                    tls=None if tls is None else (str(tls[0]), str(tls[1])),
                    log_level=log_settings.level,
                    log_format=log_settings.format,
                    tracing=None if self._tracing is None else asdict(self._tracing),
                )
            )
            if self._backends is not None:
                self._tell(self._backends)
            return self._process

    def _tell(self, message: messages.Message) -> None:
        """Send the front a message; if it has ended, its restart sends the current state."""
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.closed:
            with suppress(OSError):
                process.stdin.write(messages.write(message))
                process.stdin.flush()
