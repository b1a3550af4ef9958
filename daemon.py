"""The daemon: where settings become adapters, adapters actors, and actors a service.

The only place that names concrete adapters, starts threads and hears signals. Every start stands
beside its stop, and the stops run in the opposite order.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final, NoReturn

import structlog

from actors import tree
from actors.board import Board
from actors.clock import ThreadClock
from actors.consumer import ConsumerLimits
from actors.control import ActorControl
from actors.drain import describe, drain_and_stop
from actors.messages import Ref
from actors.watch import Watch
from tenantry import __version__, failpoints
from tenantry.api.app import PUBLISH_SECONDS, create_app
from tenantry.api.cursors import kept_key
from tenantry.api.entrance import Entrance
from tenantry.api.idempotency import IdempotencyKeys, MemoryIdempotencyKeys
from tenantry.api.info import describe as describe_place
from tenantry.api.port import Control, SystemState
from tenantry.api.standby import StandbyBroker, StandbyControl, StandbyProver, term_status
from tenantry.audit.auditor import Auditor
from tenantry.audit.postgres import PostgresAccounts
from tenantry.broker.pending import PendingCounts
from tenantry.broker.port import DeadLetters, Publishing
from tenantry.broker.postgres.links import embedded_links
from tenantry.broker.rabbitmq.links import rabbitmq_links
from tenantry.broker.rabbitmq.permit import Permit
from tenantry.database.credentials import PostgresCredentials
from tenantry.database.embedded import EmbeddedPostgres
from tenantry.database.idempotency import PostgresIdempotencyKeys
from tenantry.database.keeper import PostgresKeeper
from tenantry.database.loop import LoopQueries
from tenantry.database.migrations import migrate, migrate_unless_led
from tenantry.database.pool import Database
from tenantry.database.probes import PostgresProbes
from tenantry.database.sql_access import LOOK_EVERY as LOOK_EVERY_SQL
from tenantry.database.sql_access import PostgresSqlAccess
from tenantry.front.plan import WorkWith
from tenantry.handlers.message import Handler
from tenantry.handlers.resolve import resolve
from tenantry.handlers.wiring import abandoned, put_before, store_patience
from tenantry.isolation.port import Prover
from tenantry.isolation.prover import IsolationProver
from tenantry.journal.listener import JournalListener
from tenantry.journal.port import Metadata
from tenantry.messages.reader import PostgresPageReader
from tenantry.process.ending import DRAIN_SECONDS, end_at_latest
from tenantry.process.limits import allow_open_files
from tenantry.process.report import Report
from tenantry.process.signals import Signals, StopRequestedError
from tenantry.process.threads import Threads
from tenantry.projections.tenants import TenantProjection
from tenantry.reprocessing.keeper import LetterKeeper
from tenantry.reprocessing.reprocessing import Reprocessing
from tenantry.schedule import Schedule
from tenantry.settings import Settings, SettingsError
from tenantry.stores import Stores
from tenantry.telemetry.metrics import Recorder
from tenantry.telemetry.metrics_collector import SystemCollector
from tenantry.telemetry.metrics_page import MetricsPage
from tenantry.telemetry.systemd import Notifier
from tenantry.terms.candidate import Candidate
from tenantry.terms.identity import holder_of
from tenantry.terms.keeper import TermKeeper
from tenantry.terms.lease import LOOK_EVERY, Term
from tenantry.terms.postgres import PostgresTerms

log = structlog.get_logger("daemon")

READY_EVERY: Final = 0.25
"""Seconds between looks at whether the system is ready and alive."""

STANDBY_POOL: Final = 4
STANDBY_STATEMENT_TIMEOUT: Final = 5.0


def serve(settings: Settings) -> int:
    """Run the daemon until a signal or `tenantry stop`; give the exit code of the contract.

    0: all that was accepted is finished. 1: something is left, or the supervisor failed; each
    orphan is named in the log. Raises what keeps it from starting: `DatabaseError`, `BrokerError`,
    `ListenError`, `SettingsError`, `HandlerResolveError`.
    """
    allow_open_files()
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except failpoints.FailpointsError as error:
        raise SettingsError(str(error)) from None
    signals = Signals()
    with signals.heard():
        try:
            return Daemon(settings, signals).run()
        except StopRequestedError:
            log.info("daemon.stopped_while_starting")
            return 0
        except Exception as error:
            if not signals.interrupted:
                raise
            # Whatever the signal broke off, a statement say, fails in its own way on the way out.
            log.info("daemon.stopped_while_starting", error=f"{type(error).__name__}: {error}")
            return 0


class Daemon:
    """One run of the daemon, from the first connection to the last."""

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self._settings = settings
        self._signals = signals
        self._board = Board()
        self._watch = Watch(self._board, patience=settings.supervision.hang_seconds)
        self._notifier = Notifier()
        self._report = Report(self._notifier)
        self._failure: str | None = None
        self._handlers: Mapping[str, Handler] = {}

    def run(self) -> int:
        """Listen, wait for the term, lead, drain, stop everything."""
        with ExitStack() as stack:
            try:
                self._threads = Threads(stack, self._watch.add)
                entrance = self._listen()
                url = self._find_database(stack)
                database = Database(
                    url, pool_size=STANDBY_POOL, statement_timeout=STANDBY_STATEMENT_TIMEOUT
                )
                stack.callback(database.close)
                database.open()
                migrate_unless_led(database)
                terms = PostgresTerms(database)
                term = self._wait_for(terms, database, entrance)
                if term is None:
                    log.info("daemon.stopped_as_standby")
                    return 0
                self._keep(stack, terms, term)
                sessions = Database(
                    url,
                    pool_size=self._settings.database.pool_size,
                    term=terms.claim(term.number),
                )
                supervisor = self._lead(stack, entrance, sessions, term)
            finally:
                self._signals.patient = True
            # What is there now is there to stay. Unless it is left out, a full collection, every
            # few seconds while messages pour in, holds all threads up for a tenth of a second.
            gc.collect()
            gc.freeze()
            self._look_on()
            return self._shut_down(supervisor)

    # Starting.

    def _listen(self) -> Entrance:
        settings = self._settings
        self._handlers = resolve(settings.handlers)
        log.info("daemon.starting", version=__version__, pid=os.getpid())
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        entrance = Entrance(settings)
        entrance.bind()
        for name, loop in entrance.loops().items():
            self._threads.start(name, loop)
        if not settings.security.jwt_secret.get_secret_value():
            log.warning(
                "api.without_tokens",
                listens_on=f"{settings.server.host}:{entrance.port}",
                remedy="whoever is on this machine may do everything; set security.jwt_secret",
            )
        return entrance

    def _find_database(self, stack: ExitStack) -> str:
        """Give the URL of the database; the embedded server is started first."""
        url = self._settings.database.url.get_secret_value()
        if not url:
            directory = self._settings.postgres_dir
            embedded = EmbeddedPostgres(directory)
            stack.callback(embedded.stop)
            url = embedded.start()
            self._threads.start("postgres-keeper", PostgresKeeper(embedded))
            log.info("postgres.embedded", directory=str(directory))
        return url

    def _wait_for(
        self, terms: PostgresTerms, database: Database, entrance: Entrance
    ) -> Term | None:
        """Take the term, once that is possible; until then stand by. None at the end."""
        settings = self._settings
        candidate = Candidate(terms, holder_of(settings.state_dir, settings.control_socket))
        term = candidate.try_to_lead()
        if term is not None:
            return term
        control = StandbyControl(candidate, on_stop=self._signals.ask_to_stop)
        broker = StandbyBroker(control.reasons)
        self._open(
            entrance,
            Stores.on(database),
            control=control,
            publishing=broker,
            reprocessing=self._reprocessing(Stores.on(database), broker, broker),
            auditor=Auditor(PostgresAccounts(database), broker, lambda _: None),
            prover=StandbyProver(control.reasons),
            idempotency=MemoryIdempotencyKeys(),
            metrics=SystemCollector(status=control.status, recorder=Recorder(), reconnects={}),
        )
        while term is None:
            self._report.standing_by(control.reasons())
            if self._signals.wake.wait(LOOK_EVERY):
                return None
            term = candidate.try_to_lead()
        return term

    def _keep(self, stack: ExitStack, terms: PostgresTerms, term: Term) -> None:
        keeper = TermKeeper(terms, term, lost=self._term_lost)
        # Given back last: nothing is done under it any more then.
        stack.callback(keeper.release)
        self._threads.start("term-keeper", keeper)

    def _lead(self, stack: ExitStack, entrance: Entrance, database: Database, term: Term) -> Ref:
        settings, board = self._settings, self._board
        stack.callback(database.close)
        database.open()
        migrate(database)
        listener = JournalListener(database)
        self._threads.start("journal-listener", listener)
        projection = TenantProjection()
        projection.ensure_current(database)
        stores = Stores.on(database, projection, listener)

        if settings.rabbitmq.url.get_secret_value():
            links = rabbitmq_links(settings, Permit(term.number, term.valid))
        else:
            links = embedded_links(database)
        stack.callback(links.close)
        links.prepare()
        for name, loop in links.loops.items():
            self._threads.start(name, loop)
        pending = PendingCounts(links.administration)
        self._threads.start("broker-pending", pending)
        clock = ThreadClock()
        self._threads.start("clock", clock)

        recorder = Recorder()
        board.pending = pending.counts
        board.probes = {
            "the broker": links.connected,
            "the database": lambda: listener.connected,
            "the term": term.valid,
        }
        sql_access = PostgresSqlAccess(database)
        handling = put_before(
            stores.messages,
            self._handlers,
            database,
            settings,
            stack=stack,
            on_overrun=self._crashed,
        )
        supervisor = tree.plant(
            tree.TreePorts(
                journal=stores.journal,
                directory=stores.directory,
                messages=stores.messages,
                handling=handling,
                letters=stores.letters,
                consuming=links.consuming,
                administration=links.administration,
                passwords=PostgresCredentials(database),
                sql_access=sql_access,
                clock=clock,
                observer=recorder,
            ),
            settings,
            board,
            limits=ConsumerLimits(
                prefetch=settings.consumer.prefetch,
                batch_size=settings.consumer.batch_size,
                linger=settings.consumer.linger_ms / 1000,
            ),
            store_patience=store_patience(self._handlers, settings),
            on_crash=self._crashed,
        )
        control = ActorControl(
            supervisor,
            board,
            self._watch,
            term=term_status(term.standing),
            drain_seconds=settings.shutdown.deadline_seconds,
            on_stop=self._signals.ask_to_stop,
        )
        auditor = Auditor(PostgresAccounts(database), links.queues, board.in_flight)
        stack.callback(auditor.stop)
        prover = IsolationProver(
            directory=stores.directory,
            journal=stores.journal,
            broker=links.probes,
            database=PostgresProbes(database),
        )
        reprocessing = self._reprocessing(stores, links.publishing, links.dead_letters)
        keeper = LetterKeeper(reprocessing=reprocessing, index=stores.letters, queues=links.queues)
        self._open(
            entrance,
            stores,
            control=control,
            publishing=links.publishing,
            reprocessing=reprocessing,
            auditor=auditor,
            prover=prover,
            idempotency=PostgresIdempotencyKeys(database),
            metrics=SystemCollector(
                status=control.status,
                recorder=recorder,
                reconnects=links.reconnects,
                audits=auditor.latest,
                abandoned_handlers=lambda: abandoned(handling),
                isolation=prover.latest,
            ),
        )
        entrance.work_with(
            WorkWith(
                database_url=database.url,
                cursor_key=self._cursor_key().hex(),
                rabbitmq_url=settings.rabbitmq.url.get_secret_value() or None,
            )
        )
        tree.begin(supervisor)
        self._threads.start("dead-letters", keeper)
        every = settings.audit.every_seconds
        self._schedule("audit", lambda: auditor.audit_all(stores.directory), seconds=every)
        every = settings.isolation.verify_every_seconds
        by = Metadata(actor="daemon")
        self._schedule("isolation", lambda: prover.prove(metadata=by), seconds=every)
        self._schedule("sql-sessions", sql_access.end_long_transactions, seconds=LOOK_EVERY_SQL)
        return supervisor

    def _schedule(self, name: str, work: Callable[[], object], *, seconds: float) -> None:
        """Do something every so many seconds while the system runs; never, where that is 0."""
        if seconds:
            running = lambda: self._board.state is SystemState.RUNNING  # noqa: E731
            self._threads.start(name, Schedule(name, work, seconds=seconds, when=running))

    def _reprocessing(
        self, stores: Stores, publishing: Publishing, queues: DeadLetters
    ) -> Reprocessing:
        return Reprocessing(
            index=stores.letters,
            queues=queues,
            publishing=publishing,
            journal=stores.journal,
            publish_timeout=PUBLISH_SECONDS,
            on_listed=self._board.dead_letters_found,
        )

    def _open(
        self,
        entrance: Entrance,
        stores: Stores,
        *,
        control: Control,
        publishing: Publishing,
        reprocessing: Reprocessing,
        auditor: Auditor,
        prover: Prover,
        idempotency: IdempotencyKeys,
        metrics: SystemCollector,
    ) -> None:
        """Let requests in, to what stands behind them now."""
        settings = self._settings
        page = MetricsPage(metrics)
        app = create_app(
            control=control,
            directory=stores.directory,
            journal=stores.journal,
            messages=stores.messages,
            page_reader=PostgresPageReader(LoopQueries(stores.database)),
            publishing=publishing,
            letters=stores.letters,
            reprocessing=reprocessing,
            auditor=auditor,
            prover=prover,
            idempotency=idempotency,
            cursor_key=self._cursor_key(),
            default_workers=settings.workers,
            info=describe_place(settings, entrance, database=stores.database.where),
            jwt_secret=settings.security.jwt_secret.get_secret_value() or None,
            metrics=page,
        )
        entrance.open(app, page)

    def _cursor_key(self) -> bytes:
        return kept_key(self._settings.state_dir / "cursor.key")

    # Running.

    def _look_on(self) -> None:
        """Wait for the end; tell whenever the system becomes ready, or is not."""
        while not self._signals.wake.wait(READY_EVERY):
            self._watch.look()
            if dead := self._watch.liveness():
                self._failure = "; ".join(dead)
                return
            self._report.leading(self._board.not_ready(), tenants=len(self._board.tenants))

    def _crashed(self, reason: str) -> None:
        self._failure = reason
        self._signals.ask_to_stop()

    def _term_lost(self) -> NoReturn:
        """End at once, and do nothing more in order: another daemon does it all by now.

        What this one holds is not its own any more. Whoever started it starts it again, and it
        will be a standby then.
        """
        remedy = "it is a standby once it is started again"
        log.critical("daemon.term_lost", reason="another daemon has taken the term", remedy=remedy)
        self._notifier.notify("STATUS=another daemon has taken the term")
        os._exit(1)

    # Stopping.

    def _shut_down(self, supervisor: Ref) -> int:
        seconds = self._settings.shutdown.deadline_seconds
        if self._failure is not None:
            log.critical("daemon.failed", reason=self._failure)
            seconds = min(seconds, DRAIN_SECONDS)
            end_at_latest()
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


if __name__ == "__main__":
    from tenantry.cli.main import main

    sys.exit(main())
