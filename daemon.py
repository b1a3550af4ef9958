"""The daemon: where settings become adapters, adapters actors, and actors a service.

The only place that names concrete adapters, starts threads and hears signals. Every start stands
beside its stop, and the stops run in the opposite order.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final, NoReturn
from urllib.parse import unquote, urlsplit

import structlog
from starlette.types import ASGIApp

from actors.board import Board
from actors.clock import ThreadClock, tell
from actors.consumer import ConsumerLimits
from actors.control import ActorControl
from actors.drain import describe, drain_and_stop
from actors.messages import Begin, Ref
from actors.provisioning import Provisioner
from actors.reconciler import ReconcilerPorts
from actors.supervisor import Supervisor, SupervisorPorts
from actors.tenant import TenantPorts
from actors.watch import Watch
from tenantry import __version__, failpoints
from tenantry.api.app import create_app
from tenantry.api.cursors import kept_key
from tenantry.api.door import Door
from tenantry.api.port import SystemState
from tenantry.api.routes.metrics import alone
from tenantry.api.server import ApiServer
from tenantry.audit.auditor import Auditor
from tenantry.audit.postgres import PostgresAccounts
from tenantry.broker.pending import PendingCounts
from tenantry.broker.port import Administration, Consuming, DeadLetters, Publishing, Queues
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.consuming import PostgresConsuming
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.publishing import PostgresPublishing
from tenantry.broker.postgres.rotation import QueueRotation
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.database.credentials import PostgresCredentials
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.idempotency import PostgresIdempotencyKeys
from tenantry.database.keeper import PostgresKeeper
from tenantry.database.loop import LoopQueries
from tenantry.database.migrations import migrate
from tenantry.database.pool import STATEMENT_TIMEOUT, Database
from tenantry.database.sql_access import LOOK_EVERY as LOOK_EVERY_SQL
from tenantry.database.sql_access import PostgresSqlAccess
from tenantry.front.plan import WorkWith
from tenantry.front.process import Front, relay_beside
from tenantry.handlers.crew import Crew
from tenantry.handlers.message import Handler
from tenantry.handlers.resolve import resolve
from tenantry.journal.listener import JournalListener
from tenantry.journal.postgres import PostgresEventStore
from tenantry.messages.attempts import RetryPolicy
from tenantry.messages.dead_letters_postgres import PostgresDeadLetterIndex
from tenantry.messages.handling import TRANSACTIONS, HandlingStore
from tenantry.messages.port import MessageStore
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.reader import PostgresPageReader
from tenantry.projections.tenants import PostgresTenantDirectory, TenantProjection
from tenantry.schedule import Schedule
from tenantry.settings import Settings, SettingsError
from tenantry.telemetry.heartbeat import Heartbeat
from tenantry.telemetry.metrics import Recorder
from tenantry.telemetry.metrics_collector import SystemCollector
from tenantry.telemetry.metrics_page import MetricsPage
from tenantry.telemetry.systemd import Notifier

log = structlog.get_logger("daemon")

OPEN_FILES: Final = 16_384
"""Files and sockets the process may have open; more only makes its children slower to start."""

JOIN_TIMEOUT: Final = 5.0
"""Seconds a thread is given to end, once it has been told to."""

FAILED_DRAIN_SECONDS: Final = 5.0
FAILED_END_SECONDS: Final = 20.0
"""Once the daemon can't go on: what is left to drain, and to all of the end. The broker redelivers
what is not finished, and whoever started the daemon waits to start it anew."""

LOOK_EVERY: Final = 0.25
"""Seconds between looks at whether the system is ready, for the service manager."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAdapters:
    """One kind of broker, as the daemon needs it; `reconnects` counts by connection."""

    administration: Administration
    queues: Queues
    consuming: Consuming
    publishing: Publishing
    dead_letters: DeadLetters
    connected: Callable[[], bool]
    reconnects: Mapping[str, Callable[[], int]]


IDLE_MARGIN: Final = 30.0
"""Seconds beyond its time after which the server ends a transaction in which a handler hangs."""


class StopRequestedError(BaseException):
    """A signal came while the daemon was starting; not an `Exception`, so that nothing eats it."""


def serve(settings: Settings) -> int:
    """Run the daemon until a signal or `tenantry stop`; give the exit code of the contract.

    0: all that was accepted is finished. 1: something is left, or the supervisor failed; each
    orphan is named in the log. Raises what keeps it from starting: `DatabaseError`, `BrokerError`,
    `ListenError`, `SettingsError`, `HandlerResolveError`.
    """
    _allow_open_files()
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except failpoints.FailpointsError as error:
        raise SettingsError(str(error)) from None
    daemon = Daemon(settings)
    with daemon.signals():
        try:
            return daemon.run()
        except StopRequestedError:
            log.info("daemon.stopped_while_starting")
            return 0
        except Exception as error:
            if not daemon.interrupted:
                raise
            # Whatever the signal broke off, a statement say, fails in its own way on the way out.
            log.info("daemon.stopped_while_starting", error=f"{type(error).__name__}: {error}")
            return 0


class Daemon:
    """One run of the daemon, from the first connection to the last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._board = Board()
        self._watch = Watch(self._board, patience=settings.supervision.hang_seconds)
        self._notifier = Notifier()
        self._wake = threading.Event()
        self._starting = True
        self._signalled = False
        self.interrupted = False
        self._failure: str | None = None
        self._handlers: Mapping[str, Handler] = {}
        self._crew: Crew | None = None
        self._embedded: EmbeddedPostgres | None = None

    def run(self) -> int:
        """Start everything, wait, drain, stop everything."""
        with ExitStack() as stack:
            try:
                supervisor = self._start(stack)
            finally:
                self._starting = False
            # What is there now is there to stay. Unless it is left out, a full collection, every
            # few seconds while messages pour in, holds all threads up for a tenth of a second.
            gc.collect()
            gc.freeze()
            self._wait()
            return self._shut_down(supervisor)

    # Starting.

    def _start(self, stack: ExitStack) -> Ref:
        settings = self._settings
        self._handlers = resolve(settings.handlers)
        log.info("daemon.starting", version=__version__, pid=os.getpid())
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        door, metrics_door = Door(), Door()
        front = self._listen(stack, door)
        metrics_port = self._listen_for_metrics(stack, metrics_door)
        database = self._open_database(stack)
        listener = JournalListener(database)
        self._run_thread(stack, "journal-listener", listener.run, listener.stop, listener.heartbeat)
        projection = TenantProjection()
        projection.ensure_current(database)
        journal = PostgresEventStore(database, projections=[projection], listener=listener)
        directory = PostgresTenantDirectory(database, journal)
        messages = PostgresMessageStore(database)
        dead_letters = PostgresDeadLetterIndex(database)

        url = settings.rabbitmq.url.get_secret_value()
        broker = self._rabbitmq(stack, url) if url else self._embedded_broker(stack, database)
        pending = PendingCounts(broker.administration)
        self._run_thread(stack, "broker-pending", pending.run, pending.stop, pending.heartbeat)
        clock = ThreadClock()
        self._run_thread(stack, "clock", clock.run, clock.stop, clock.heartbeat)

        recorder = Recorder()
        board = self._board
        board.pending = pending.counts
        board.probes = {
            "the broker": broker.connected,
            "the database": lambda: listener.connected,
        }
        sql_access = PostgresSqlAccess(database)
        provisioner = Provisioner(
            administration=broker.administration,
            messages=messages,
            passwords=PostgresCredentials(database),
            sql_access=sql_access,
        )
        supervisor = Supervisor.start(
            ports=SupervisorPorts(
                directory=directory,
                tenant=TenantPorts(
                    journal=journal,
                    messages=self._handling(stack, messages, database),
                    dead_letters=dead_letters,
                    broker=broker.consuming,
                    provisioner=provisioner,
                    clock=clock,
                    limits=ConsumerLimits(
                        prefetch=settings.consumer.prefetch,
                        batch_size=settings.consumer.batch_size,
                        linger=settings.consumer.linger_ms / 1000,
                    ),
                    observer=recorder,
                    store_patience=self._store_patience(),
                ),
                reconciler=ReconcilerPorts(
                    directory=directory,
                    provisioner=provisioner,
                    clock=clock,
                    observer=recorder,
                    every=settings.reconcile.every_seconds,
                ),
            ),
            board=board,
            on_crash=self._crashed,
        )
        board.supervisor = supervisor
        control = ActorControl(
            supervisor,
            board,
            self._watch,
            drain_seconds=settings.shutdown.deadline_seconds,
            on_stop=self._wake.set,
        )
        auditor = Auditor(PostgresAccounts(database), broker.queues, board.in_flight)
        stack.callback(auditor.stop)
        metrics = MetricsPage(
            SystemCollector(
                status=control.status,
                recorder=recorder,
                reconnects=broker.reconnects,
                audits=auditor.latest,
            )
        )
        metrics_door.open(alone(metrics))
        cursor_key = kept_key(settings.state_dir / "cursor.key")
        door.open(
            create_app(
                control=control,
                directory=directory,
                journal=journal,
                messages=messages,
                page_reader=PostgresPageReader(LoopQueries(database)),
                publishing=broker.publishing,
                dead_letters=broker.dead_letters,
                letters=dead_letters,
                auditor=auditor,
                idempotency=PostgresIdempotencyKeys(database),
                cursor_key=cursor_key,
                default_workers=settings.workers,
                info=self._info(database, front, metrics_port),
                jwt_secret=settings.security.jwt_secret.get_secret_value() or None,
                metrics=metrics,
            )
        )
        if not settings.security.jwt_secret.get_secret_value():
            log.warning(
                "api.without_tokens",
                listens_on=f"{settings.server.host}:{front.port}",
                remedy="whoever is on this machine may do everything; set security.jwt_secret",
            )
        front.work_with(
            WorkWith(
                database_url=database.url, cursor_key=cursor_key.hex(), rabbitmq_url=url or None
            )
        )
        tell(supervisor, Begin())
        self._start_schedules(
            stack,
            (
                (
                    "audit",
                    settings.audit.every_seconds,
                    lambda: auditor.audit_all(directory),
                ),
                ("sql-sessions", LOOK_EVERY_SQL, sql_access.end_long_transactions),
            ),
        )
        return supervisor

    def _start_schedules(
        self, stack: ExitStack, wanted: Iterable[tuple[str, float, Callable[[], object]]]
    ) -> None:
        """Do things every so many seconds while the system runs; never, where that is 0."""
        for name, seconds, work in wanted:
            if not seconds:
                continue
            schedule = Schedule(
                name,
                work,
                seconds=seconds,
                when=lambda: self._board.state is SystemState.RUNNING,
            )
            self._run_thread(stack, name, schedule.run, schedule.stop)

    def _handling(
        self, stack: ExitStack, plain: PostgresMessageStore, database: Database
    ) -> MessageStore:
        """Put handlers before the store, with threads and connections of their own."""
        if not self._handlers:
            return plain
        settings = self._settings
        seconds = settings.handler.timeout_seconds
        own = database.beside(
            pool_size=settings.handler.connections,
            statement_timeout=max(seconds, STATEMENT_TIMEOUT),
            idle_timeout=seconds + IDLE_MARGIN,
        )
        stack.callback(own.close)
        own.open()
        crew = Crew(places=settings.handler.connections, timeout=seconds, on_overrun=self._crashed)
        stack.callback(crew.close)
        self._crew = crew
        store = HandlingStore(
            plain,
            own,
            self._handlers,
            crew=crew,
            retry=RetryPolicy(
                attempts=settings.retry.attempts, pauses=settings.retry.backoff_seconds
            ),
        )
        store.sweep()
        log.info("handlers.ready", topics=sorted(self._handlers), timeout_seconds=seconds)
        return store

    def _store_patience(self) -> float | None:
        settings = self._settings
        if not self._handlers:
            return None
        return (
            settings.supervision.hang_seconds
            + (TRANSACTIONS + 1) * settings.handler.timeout_seconds
        )

    def _open_database(self, stack: ExitStack) -> Database:
        settings = self._settings
        url = settings.database.url.get_secret_value()
        if not url:
            embedded = EmbeddedPostgres(settings.postgres_dir)
            stack.callback(embedded.stop)
            self._embedded = embedded
            url = embedded.start()
            keeper = PostgresKeeper(embedded)
            self._run_thread(stack, "postgres-keeper", keeper.run, keeper.stop)
            log.info("postgres.embedded", directory=str(settings.postgres_dir))
        database = Database(url, pool_size=settings.database.pool_size)
        stack.callback(database.close)
        database.open()
        migrate(database)
        return database

    def _listen(self, stack: ExitStack, app: ASGIApp) -> Front:
        settings = self._settings
        relay = relay_beside(settings.control_socket)
        api = ApiServer(app, socket_path=settings.control_socket, relay_path=relay)
        front = Front(
            (settings.server.host, settings.server.port),
            relay=relay,
            jwt_secret=settings.security.jwt_secret.get_secret_value() or None,
            tls=settings.server.tls,
            log_level=settings.log.level,
            log_format=settings.log.format,
        )
        # The control socket comes first: whoever holds it is the daemon of this state.
        api.bind()
        front.bind()
        # Stopped last: what hangs on the daemon's answers has then come to its end.
        self._run_thread(stack, "front", front.run, front.stop)
        self._run_thread(stack, "api", api.run, api.stop, api.heartbeat)
        return front

    def _listen_for_metrics(self, stack: ExitStack, app: ASGIApp) -> int | None:
        port = self._settings.metrics.port
        if port is None:
            return None
        api = ApiServer(app, tcp=("127.0.0.1", port))
        api.bind()
        self._run_thread(stack, "metrics", api.run, api.stop, api.heartbeat)
        return api.tcp_port

    def _rabbitmq(self, stack: ExitStack, url: str) -> BrokerAdapters:
        settings = self._settings
        management = settings.management_url
        if management is None:
            raise SettingsError("rabbitmq.url names no host")
        administration = RabbitAdministration(
            url=url,
            management_url=management.get_secret_value(),
            queue_type=settings.queue.type,
        )
        stack.callback(administration.close)
        administration.check()
        publishing = RabbitPublishing(url)
        self._run_thread(
            stack, "broker-publishing", publishing.run, publishing.stop, publishing.heartbeat
        )
        consuming = RabbitConsuming(url)
        self._run_thread(
            stack, "broker-consuming", consuming.run, consuming.stop, consuming.heartbeat
        )
        return BrokerAdapters(
            administration=administration,
            queues=administration,
            consuming=consuming,
            publishing=publishing,
            dead_letters=RabbitDeadLetters(url),
            connected=lambda: consuming.connected,
            reconnects={
                "consuming": lambda: consuming.reconnects,
                "publishing": lambda: publishing.reconnects,
            },
        )

    def _embedded_broker(self, stack: ExitStack, database: Database) -> BrokerAdapters:
        # The message store takes what it stores out of the queues: an ack has nothing to remove.
        consuming = PostgresConsuming(database, acks_remove=False)
        administration = PostgresAdministration(database, in_hand=consuming.in_hand)
        administration.check()
        self._run_thread(
            stack, "broker-consuming", consuming.run, consuming.stop, consuming.heartbeat
        )
        rotation = QueueRotation(database)
        self._run_thread(stack, "broker-rotation", rotation.run, rotation.stop, rotation.heartbeat)
        return BrokerAdapters(
            administration=administration,
            queues=administration,
            consuming=consuming,
            publishing=PostgresPublishing(database),
            dead_letters=PostgresDeadLetters(database),
            connected=lambda: consuming.connected,
            reconnects={"consuming": lambda: consuming.reconnects},
        )

    def _info(
        self, database: Database, front: Front, metrics_port: int | None
    ) -> dict[str, object]:
        settings = self._settings
        return {
            "version": __version__,
            "rabbitmq": _broker_address(settings.rabbitmq.url.get_secret_value()),
            "database": {
                "embedded": self._embedded is not None,
                "where": database.where,
            },
            "server": {
                "host": settings.server.host,
                "port": front.port,
                "tls": settings.server.tls is not None,
            },
            "metrics": {"port": metrics_port},
            "control_socket": str(settings.control_socket),
            "state_dir": str(settings.state_dir),
        }

    def _run_thread(
        self,
        stack: ExitStack,
        name: str,
        run: Callable[[], None],
        stop: Callable[[], object],
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """Run something on a thread of its own, watched; at the end stop it, then join it."""

        def guarded() -> None:
            try:
                run()
            except Exception:
                log.exception("thread.failed", thread=name)

        thread = threading.Thread(target=guarded, name=name, daemon=True)

        def join() -> None:
            thread.join(JOIN_TIMEOUT)
            if thread.is_alive():
                log.warning("thread.does_not_end", thread=name)

        stack.callback(join)
        stack.callback(stop)
        thread.start()
        self._watch.add(name, thread, heartbeat)

    # Running.

    def _wait(self) -> None:
        """Wait for the end; tell the service manager when the system becomes ready, or is not."""
        ready = False
        while not self._wake.wait(LOOK_EVERY):
            self._watch.look()
            if dead := self._watch.liveness():
                self._crashed("; ".join(dead))
                return
            reasons = self._board.not_ready()
            if not reasons and not ready:
                ready = True
                log.info("daemon.ready", tenants=len(self._board.tenants))
                self._notifier.notify("READY=1", f"STATUS={self._summary()}")
            elif reasons and ready:
                ready = False
                log.warning("daemon.not_ready", reasons=reasons)
                self._notifier.notify(f"STATUS=not ready: {'; '.join(reasons)}")

    def _summary(self) -> str:
        return f"consuming for {len(self._board.tenants)} tenants"

    def _crashed(self, reason: str) -> None:
        self._failure = reason
        self._wake.set()

    # Stopping.

    def _shut_down(self, supervisor: Ref) -> int:
        seconds = self._settings.shutdown.deadline_seconds
        if self._failure is not None:
            log.critical("daemon.failed", reason=self._failure)
            seconds = min(seconds, FAILED_DRAIN_SECONDS)
            self._end_at_latest(FAILED_END_SECONDS)
        log.info("daemon.stopping", deadline_seconds=seconds)
        self._notifier.notify("STOPPING=1", "STATUS=draining")
        orphans = drain_and_stop(supervisor, seconds=seconds)
        for orphan in orphans:
            log.error(
                "drain.orphan",
                tenant=orphan.tenant_id,
                actor=orphan.actor,
                deliveries=orphan.deliveries,
            )
        if orphans:
            log.error("daemon.stopped_unfinished", orphans=describe(orphans))
        elif self._failure is None:
            log.info("daemon.drained")
        return 1 if orphans or self._failure is not None else 0

    # Signals.

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Hear SIGTERM and SIGINT: the first ends the daemon in order, the second at once."""
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._signal) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled:
            self._end_at_once()
        self._signalled = True
        self._wake.set()
        if self._starting:
            self.interrupted = True
            raise StopRequestedError(signal.Signals(number).name)

    @staticmethod
    def _end_at_latest(seconds: float) -> None:
        """End the process, whatever hangs in it, unless it has ended by itself by then."""

        def end() -> NoReturn:
            os.write(sys.stderr.fileno(), b"tenantry: it does not end by itself, ending at once\n")
            os._exit(1)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def _end_at_once(self) -> NoReturn:
        """End without draining: the broker redelivers what was not acknowledged."""
        os.write(sys.stderr.fileno(), b"tenantry: second signal, ending at once\n")
        os._exit(1)


def _allow_open_files() -> None:
    """Raise the soft limit of open files as far as needed: clients of the API take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < OPEN_FILES:
        log.warning("daemon.few_open_files", limit=max(soft, wanted), wanted=OPEN_FILES)


def _broker_address(url: str) -> dict[str, str] | None:
    """Say where clients find RabbitMQ, without user and password; None: the broker is embedded."""
    if not url:
        return None
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return {
        "amqp_address": f"{parts.hostname}:{port}",
        "vhost": unquote(parts.path[1:]) or "/",
    }


if __name__ == "__main__":
    from tenantry.cli.main import main

    sys.exit(main())
