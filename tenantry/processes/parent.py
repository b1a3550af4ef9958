"""The parent: it holds what the service has once, and starts and supervises its children."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx
import structlog

from tenantry import __version__
from tenantry.api.paging import kept_key
from tenantry.broker import select
from tenantry.database.embedded import EmbeddedPostgres, PostgresKeeper
from tenantry.database.errors import DatabaseError
from tenantry.database.installation import known_cursor_key
from tenantry.database.pool import Database
from tenantry.front.messages import WorkWith
from tenantry.front.process import Front
from tenantry.http.listeners import ControlSocket, Relay, bind_tcp
from tenantry.loops import Heartbeat
from tenantry.process.family import DRAIN, STOP, Inherited
from tenantry.process.reload import LiveSettings
from tenantry.process.service_manager import Notifier, Report, Watchdog
from tenantry.process.signals import Signals
from tenantry.process.start_checks import allow_open_files, make_state_dir
from tenantry.process.threads import Threads
from tenantry.processes.child import BAD_CONFIGURATION, Child, environment_of
from tenantry.settings import ENVIRONMENT
from tenantry.unixpath import addressed

log: Final = structlog.get_logger("processes")

LOOK_EVERY: Final = 0.2
ASK_EVERY: Final = 1.0
ANSWER_SECONDS: Final = 2.0
"""How long a child may take to say whether it is ready."""

END_MARGIN: Final = 30.0
"""Seconds beyond the deadline after which a child that has not ended is killed."""

CURSOR_KEY: Final = "cursor.key"


def serve(live: LiveSettings, overrides: Mapping[str, object], config: Path | None) -> int:
    """Run as many daemons as `processes` says, until a signal or `tenantry stop`.

    Returns the exit code. 0: all daemons have ended in order. 1: a daemon has not, or has left
    something unfinished. 2: a daemon has reported a bad configuration. `overrides` apply to all
    daemons.
    Raises an error that keeps the parent from starting: `ListenError`, `StartError`,
    `DatabaseError`.
    """
    allow_open_files(live.now)
    signals = Signals()
    signals.patient = True
    with signals.heard(), ExitStack() as stack:
        return Parent(live, overrides, config, signals, stack).run()


class Parent:
    """One run of the parent."""

    def __init__(
        self,
        live: LiveSettings,
        overrides: Mapping[str, object],
        config: Path | None,
        signals: Signals,
        stack: ExitStack,
    ) -> None:
        self._live = live
        self._settings = live.now
        self._overrides = overrides
        self._config = config
        self._signals = signals
        self._stack = stack
        self._threads = Threads(stack, lambda *_, **__: None)
        self._notifier = Notifier()
        self._report = Report(self._notifier)
        self._heartbeat = Heartbeat()
        self._children: list[Child] = []
        self._ask_at = 0.0
        self._front_works = False

    def run(self) -> int:
        """Listen, start and supervise the children, stop them all."""
        settings = self._settings
        count = settings.process_count
        log.info("daemon.starting", version=__version__, pid=os.getpid(), processes=count)
        make_state_dir(settings)
        shared = self._listen()
        url = self._find_database()
        family = Path(shared.family)
        kept_key(settings.state_dir / CURSOR_KEY)  # copied to each child as its own key
        self._database = Database(url, pool_size=1)
        self._stack.callback(self._database.close)
        embedded = not settings.database.url.get_secret_value()
        base = settings.node.name
        for number in range(1, count + 1):
            directory = family / str(number)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / CURSOR_KEY).write_bytes((settings.state_dir / CURSOR_KEY).read_bytes())
            environment = environment_of(
                directory,
                database_url=url,
                embedded=embedded,
                name=f"{base}-{number}" if base else "",
            )
            self._children.append(
                Child(number, directory, self._for_children() | environment, shared)
            )
        try:
            code = self._look_after()
        finally:
            ended = self._stop()
        return code or ended

    def _listen(self) -> Inherited:
        settings, stack = self._settings, self._stack
        control = ControlSocket(settings.control_socket)
        stack.callback(control.close)
        relay = Relay()
        stack.callback(relay.close)
        self._front = Front(settings, relay)
        self._front.bind()
        self._live.tell(lambda now: self._front.trust(now.security.secrets))
        metrics: socket.socket | None = None
        if settings.metrics.port is not None:
            metrics = bind_tcp("127.0.0.1", settings.metrics.port)
            stack.callback(metrics.close)
        self._threads.start("front", self._front)
        if self._notifier.beat_every is not None:
            watchdog = Watchdog(
                self._notifier,
                every=self._notifier.beat_every,
                liveness=lambda: (),
                main=self._heartbeat,
            )
            self._threads.start("service-watchdog", watchdog)
        lost = self._front.lost_spans
        return Inherited(
            control=control.socket.fileno(),
            relay=relay.near.fileno(),
            parent=-1,
            port=self._front.port,
            metrics=None if metrics is None else metrics.fileno(),
            family=str(settings.state_dir.absolute() / "nodes"),
            lost_spans=None if lost is None else lost.fileno(),
        )

    def _find_database(self) -> str:
        url = self._settings.database.url.get_secret_value()
        if not url:
            embedded = EmbeddedPostgres(self._settings.postgres_dir)
            self._stack.callback(embedded.stop)
            url = embedded.start()
            self._threads.start("postgres-keeper", PostgresKeeper(embedded))
            log.info("postgres.embedded", directory=str(self._settings.postgres_dir))
        return url

    def _for_children(self) -> dict[str, str]:
        """Return the command line's options as variables: children have no command line."""
        said = {
            ENVIRONMENT[key][0]: str(value)
            for key, value in self._overrides.items()
            if value is not None and key != "state_dir"
        }
        if self._config is not None:
            said["TENANTRY_CONFIG"] = str(self._config.absolute())
        return said

    # Running.

    def _look_after(self) -> int:
        """Start the children, and restart those that end; return 2 if a restart can't help."""
        while True:
            self._heartbeat.beat()
            now = time.monotonic()
            for child in self._children:
                try:
                    code = child.look(now)
                except OSError as error:
                    log.critical("process.not_started", number=child.number, error=str(error))
                    continue
                if code == BAD_CONFIGURATION and not self._signals.stopping:
                    return BAD_CONFIGURATION
                self._hear(child)
            if self._signals.wait(LOOK_EVERY):
                return 0
            if self._signals.take_reload():
                self._notifier.reloading()
                self._live.reload()
                self._tell_all(signal.SIGHUP)
                self._report.reloaded()
            if now >= self._ask_at:
                self._ask_at = now + ASK_EVERY
                reasons = self._not_ready()
                if len(reasons) < len(self._children) and not self._front_works:
                    self._front_works = self._tell_front()
                self._report.leading(reasons, processes=len(self._children))

    def _tell_front(self) -> bool:
        """Let the front do by itself what it can; return whether it has all that this takes."""
        try:
            self._database.open()
        except DatabaseError as error:
            log.info("front.waits", error=str(error))
            return False
        key = known_cursor_key(self._database)
        if key is not None:
            access = select.publishing_access(self._settings)
            self._front.work_with(
                WorkWith(database_url=self._database.url, cursor_key=key.hex(), broker=access)
            )
        return key is not None

    def _hear(self, child: Child) -> None:
        """Carry out a child's request that concerns all children."""
        if child.line is None:
            return
        with suppress(BlockingIOError, ConnectionError):
            said = child.line.recv(64)
            if DRAIN in said:
                log.info("drain.asked_for", number=child.number)
                self._tell_all(signal.SIGUSR2)
            if STOP in said:
                self._signals.ask_to_stop()

    def _tell_all(self, number: int) -> None:
        for child in self._children:
            child.send(number)

    def _not_ready(self) -> tuple[str, ...]:
        """Ask each child whether it is ready."""
        reasons = []
        for child in self._children:
            self._heartbeat.beat()
            why = _why_not_ready(child)
            if why is not None:
                reasons.append(f"process {child.number}: {why}")
        return tuple(reasons)

    # Stopping.

    def _stop(self) -> int:
        seconds = self._settings.shutdown.deadline_seconds
        log.info("daemon.stopping", deadline_seconds=seconds)
        self._notifier.stopping("draining")
        self._tell_all(signal.SIGTERM)
        until = time.monotonic() + seconds + END_MARGIN
        codes = []
        for child in self._children:
            self._heartbeat.rest()
            codes.append(child.wait(until - time.monotonic()))
        if not any(codes):
            log.info("daemon.drained")
        return 1 if any(codes) else 0


def _why_not_ready(child: Child) -> str | None:
    if child.pid is None:
        return "it is about to be started again"
    try:
        with (
            addressed(child.socket_path) as uds,
            httpx.Client(
                transport=httpx.HTTPTransport(uds=uds, verify=False), timeout=ANSWER_SECONDS
            ) as client,
        ):
            answer = client.get("http://localhost/readyz")
            if answer.is_success:
                return None
            detail: object = answer.json().get("detail")
    except (httpx.HTTPError, OSError, ValueError) as error:
        return f"it does not answer ({type(error).__name__})"
    return str(detail)
