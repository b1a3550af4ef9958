"""The daemon: where settings become adapters, adapters actors, and actors a service.

Only this module owns threads and handles signals. Every start is registered with its stop, and the
stops run in the opposite order.
"""

from __future__ import annotations

if __name__ == "__main__":  # first of all, so that signals are handled while the rest is loaded
    import runpy

    runpy.run_module("tenantry", run_name="__main__", alter_sys=True)

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, NoReturn, TypeVar

import structlog

from tenantry import __version__, failpoints
from tenantry.actors.clock import ThreadClock
from tenantry.actors.control import ActorControl
from tenantry.actors.messages import Ref
from tenantry.actors.ports import ActorPorts
from tenantry.actors.provisioner import Provisioner
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.tree import begin, drain_and_stop, report, start_actors
from tenantry.actors.watch import Watch
from tenantry.assembly.api import open_leader_api, open_standby_api
from tenantry.assembly.backends import Backends, connect_backends, store_patience
from tenantry.assembly.listeners import Listeners
from tenantry.assembly.nodes import MovesJournal, introduction, make_membership
from tenantry.assembly.schedules import begin_schedules
from tenantry.assembly.standby import StandbyControl, Waiting, term_status
from tenantry.broker.password_hashes import PostgresPasswordHashes
from tenantry.control.port import SystemState
from tenantry.database.embedded import EmbeddedPostgres, PostgresKeeper
from tenantry.database.loop import CONNECTIONS as PAGE_CONNECTIONS
from tenantry.database.migrations import migrate, migrate_unless_led
from tenantry.database.pool import Database
from tenantry.database.server import Shares, take_share, warn
from tenantry.dead_letters.keeper import DeadLetterKeeper
from tenantry.handlers.resolve import resolve
from tenantry.loops import Heartbeat
from tenantry.messages.retention import Retention
from tenantry.messages.retention_postgres import PostgresMessageRemovals
from tenantry.metrics.recorder import Recorder
from tenantry.nodes.balancing import Balancing
from tenantry.nodes.cluster import NodesFromOne
from tenantry.nodes.joining import Joined, Joining
from tenantry.nodes.postgres import PostgresNodes
from tenantry.nodes.service import MembershipService
from tenantry.process.family import Family, inherited
from tenantry.process.reload import LiveSettings
from tenantry.process.service_manager import Notifier, Report, Watchdog
from tenantry.process.signals import DRAIN_SECONDS, Signals, StopRequestedError, end_at_latest
from tenantry.process.start_checks import allow_open_files, explained, export_of, make_state_dir
from tenantry.process.threads import Threads, allow_many_waiting_threads
from tenantry.settings import Settings, SettingsError
from tenantry.terms.keeper import Candidate, TermKeeper, holder_of
from tenantry.terms.lease import LOOK_EVERY
from tenantry.terms.postgres import PostgresTerms
from tenantry.tracing import CLOSE_SECONDS, open_tracer

log = structlog.get_logger("daemon")

T = TypeVar("T")

NODES_KEPT: Final = 86_400.0
"""Seconds for which a lost node stays listed."""

SHARE_AFTER: Final = 10.0
"""Seconds after which a process that can't begin serves requests itself if no other is ready."""

READY_EVERY: Final = 0.25
"""Seconds between looks at whether the system is ready and alive."""

CROWDED_SWITCH: Final = 0.05
"""Seconds a thread may keep the interpreter while all actors start or drain at once. A waiting
thread asks for it again at this interval: at Python's 5 ms, thousands of threads do little else."""

CROWDED_FOR: Final = 60.0
"""Seconds after which a start counts as over even if the daemon is not ready."""

LOOKING_POOL: Final = 4
"""Connections for looking at nodes, and for renewing this node's term."""

FRONT_POOL: Final = 20
FRONT_PUBLISHING: Final = 8
STANDBY_STATEMENT_TIMEOUT: Final = 5.0


def serve(settings: Settings, load: Callable[[], Settings]) -> int:
    """Run the daemon until a signal or `tenantry stop`; return the exit code of the contract.

    0: all accepted deliveries are finished. 1: some are left, or the daemon failed; each orphan is
    named in the log. `load` reads the settings again, when SIGHUP asks for it. Raises an error that
    keeps the daemon from starting: `DatabaseError`, `BrokerError`, `ListenError`, `SettingsError`,
    `HandlerResolveError`, `StartError`.
    """
    allow_open_files(settings)
    allow_many_waiting_threads()
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except failpoints.FailpointsError as error:
        raise SettingsError(str(error)) from None
    signals = Signals()
    try:
        # A signal may come while the handlers are being put in place.
        with signals.heard():
            return Daemon(LiveSettings(settings, load), signals).run()
    except StopRequestedError:
        log.info("daemon.stopped_while_starting")
        return 0
    except Exception as error:
        if not signals.interrupted:
            # Except connection errors, which the adapters explain.
            if isinstance(error, OSError) and not isinstance(error, ConnectionError):
                raise explained(error, settings) from error
            raise
        # The work that the signal broke off (a statement, say) fails with an error of its own.
        log.info("daemon.stopped_while_starting", error=f"{type(error).__name__}: {error}")
        return 0


class Daemon:
    """One run of the daemon, from the first connection to the last."""

    def __init__(self, live: LiveSettings, signals: Signals) -> None:
        self._live = live
        self._settings = live.now
        self._signals = signals
        self._runtime = RuntimeState()
        self._recorder = Recorder()
        self._watch = Watch(
            self._runtime,
            patience=self._settings.supervision.hang_seconds,
            observer=self._recorder,
        )
        self._heartbeat = Heartbeat()
        self._notifier = Notifier()
        self._report = Report(self._notifier)
        self._failure: str | None = None
        self._inherited = inherited()
        self._family = Family(self._inherited, signals)
        self._control: ActorControl | None = None
        self._switch_interval = sys.getswitchinterval()

    def run(self) -> int:
        """Listen, wait for the term, lead, drain, stop everything."""
        settings = self._settings
        with ExitStack() as stack:
            stack.callback(sys.setswitchinterval, self._switch_interval)
            self._threads = Threads(stack, self._watch.add)
            try:
                self._handlers = resolve(settings.handlers)
                self._tracer = open_tracer(export_of(settings))
                last = min(CLOSE_SECONDS, settings.shutdown.deadline_seconds)
                stack.callback(self._tracer.close, last)
                listeners = self._listen()
                url = self._find_database(stack)
                database = Database(
                    url, pool_size=LOOKING_POOL, statement_timeout=STANDBY_STATEMENT_TIMEOUT
                )
                stack.callback(database.close)
                database.open()
                shares = take_share(database, self._wanted())
                warn(database)
                joined = self._wait_for(database, url, stack, listeners, shares)
                self._heartbeat.rest()
                if joined is None:
                    log.info("daemon.stopped_as_standby")
                    return 0
                term, nodes = joined.term, PostgresNodes(database)
                nodes.forget_lost(NODES_KEPT)
                nodes.introduce(introduction(settings, joined.name, port=listeners.port))
                give_back = partial(nodes.leave, joined.name)
                keeper = TermKeeper(joined.terms, term, lost=self._term_lost, give_back=give_back)
                # The term is given back last: by then no work is done under it any more.
                stack.callback(keeper.release)
                self._threads.start("term-keeper", keeper)
                sessions = Database(url, pool_size=shares.pool, term=joined.claim)
                backends = connect_backends(
                    settings,
                    sessions,
                    term,
                    node=joined.name,
                    shares=shares,
                    handlers=self._handlers,
                    threads=self._threads,
                    stack=stack,
                    on_overrun=self._crashed,
                    on_handled=self._recorder.handled,
                    tracer=self._tracer,
                )
                supervisor = self._lead(stack, listeners, backends, joined)
            finally:
                self._signals.patient = True
            self._look_on(listeners)
            self._heartbeat.rest()
            return self._shut_down(supervisor)

    # Starting.

    def _listen(self) -> Listeners:
        settings = self._settings
        log.info("daemon.starting", version=__version__, pid=os.getpid())
        make_state_dir(settings)
        listeners = Listeners(settings, self._inherited)
        listeners.bind()
        for name, loop in listeners.loops().items():
            self._threads.start(name, loop)
        if self._family.parent is not None:
            self._threads.start("parent", self._family.parent)
        if self._notifier.beat_every is not None:
            watchdog = Watchdog(
                self._notifier,
                every=self._notifier.beat_every,
                liveness=self._watch.liveness,
                main=self._heartbeat,
            )
            self._threads.start("service-watchdog", watchdog)
        self._live.tell(lambda now: listeners.trust(now.security.secrets))
        if listeners.identity.keys is not None:
            self._threads.start("provider-keys", listeners.identity.keys, vital=False)
        if not listeners.identity.is_asked_for:
            log.warning(
                "api.without_tokens",
                listens_on=f"{settings.server.host}:{listeners.port}",
                remedy="whoever is on this machine may do everything; set security.jwt_secret",
            )
        return listeners

    def _find_database(self, stack: ExitStack) -> str:
        """Return the URL of the database; start the embedded server first, if it is used."""
        url = self._settings.database.url.get_secret_value()
        if not url:
            directory = self._settings.postgres_dir
            embedded = EmbeddedPostgres(directory)
            stack.callback(embedded.stop)
            url = embedded.start()
            self._threads.start("postgres-keeper", PostgresKeeper(embedded))
            log.info("postgres.embedded", directory=str(directory))
        return url

    def _wanted(self) -> Shares:
        """Return how many connections would be best."""
        settings = self._settings
        return Shares(
            pool=settings.database.pool_size,
            pages=PAGE_CONNECTIONS,
            front_pool=FRONT_POOL,
            front_pages=PAGE_CONNECTIONS,
            front_publishing=FRONT_PUBLISHING,
            handlers=settings.handler.connections if self._handlers else 0,
        )

    def _wait_for(
        self, database: Database, url: str, stack: ExitStack, listeners: Listeners, shares: Shares
    ) -> Joined | None:
        """Become a node, once that is possible; until then stand by. None at a shutdown."""
        settings = self._settings
        me = holder_of(settings.state_dir, settings.control_socket)
        stand_by = lambda control: open_standby_api(  # noqa: E731
            listeners, settings, url, control, shares=shares, stack=stack
        )
        if not migrate_unless_led(database):
            # The leader under the former single term has to end before the schema changes.
            terms = PostgresTerms(database)
            candidate = Candidate(terms, me)
            term = self._until(candidate.try_to_lead, candidate, stand_by)
            if term is None:
                return None
            migrate(database)
            terms.release(term.number)
        joining = Joining(
            database, me, name=settings.node.name or None, standby=settings.node.standby
        )
        return self._until(joining.try_to_join, joining, stand_by)

    def _until(
        self,
        attempt: Callable[[], T | None],
        waiting: Waiting,
        stand_by: Callable[[StandbyControl], None],
    ) -> T | None:
        """Try until success, and meanwhile serve read-only requests; None at a shutdown."""
        done = attempt()
        if done is not None:
            return done
        control = StandbyControl(waiting, on_stop=self._signals.ask_to_stop)
        stand_by(control)
        while done is None:
            self._report.standing_by(control.reasons())
            if self._pause(LOOK_EVERY):
                return None
            done = attempt()
        return done

    def _lead(
        self, stack: ExitStack, listeners: Listeners, backends: Backends, joined: Joined
    ) -> Ref:
        settings, runtime = self._settings, self._runtime
        stores, links = backends.stores, backends.links
        clock = ThreadClock()
        self._threads.start("clock", clock)
        moves = MovesJournal(stores.journal)
        membership = make_membership(backends, joined, runtime, moved=moves)
        cluster = NodesFromOne(PostgresNodes(stores.database), membership)
        # This node's ownership of tenants is settled before any actor starts.
        membership.turn(told=True)
        runtime.pending = backends.pending.counts
        runtime.probes = dict(backends.probes)
        runtime.troubles = backends.troubles
        supervisor = start_actors(
            ActorPorts(
                journal=stores.journal,
                directory=stores.directory,
                messages=backends.handling,
                dead_letters=stores.dead_letters,
                dead_letter_events=stores.dead_letter_events,
                consuming=links.consuming,
                provisioner=Provisioner(
                    administration=links.administration,
                    messages=stores.messages,
                    passwords=PostgresPasswordHashes(stores.database),
                    sql_access=backends.sql_access,
                ),
                clock=clock,
                limits=lambda: self._live.now.consumer,
                observer=self._recorder,
                reconcile_every=settings.reconcile.every_seconds,
                store_patience=store_patience(self._handlers, settings),
                ownership=membership,
                weights=backends.weights,
                tracer=self._tracer,
            ),
            runtime,
            on_crash=self._crashed,
        )
        control = self._control = ActorControl(
            supervisor,
            runtime,
            self._watch,
            term=term_status(joined.term.standing),
            ownership=membership,
            node=joined.name,
            nodes=cluster.glance,
            drain_seconds=settings.shutdown.deadline_seconds,
            on_stop=self._family.stop,
            on_drain=self._family.drain,
            tracer=self._tracer,
        )
        retention = Retention(PostgresMessageRemovals(stores.database), mine=membership.owns)
        work = open_leader_api(
            listeners,
            settings,
            backends,
            control=control,
            cluster=cluster,
            recorder=self._recorder,
            default_workers=lambda: self._live.now.workers,
            in_flight=runtime.in_flight,
            on_listed=runtime.dead_letters_found,
            removed=retention.removed,
            node=joined.name,
            tracer=self._tracer,
            stack=stack,
        )
        # From here on the daemon consumes: a signal drains it, and interrupts nothing.
        self._signals.patient = True
        sys.setswitchinterval(CROWDED_SWITCH)
        begin(supervisor)
        after_turn: list[Callable[[], object]] = []
        if backends.turns is not None:
            nodes = PostgresNodes(stores.database)
            after_turn.append(Balancing(nodes, membership, backends.turns.backlogs).turn)
        after_turn.append(moves.write)
        service = MembershipService(stores.database, membership, after_turn=after_turn)
        membership.wake = service.wake
        self._threads.start("nodes", service)
        letters = DeadLetterKeeper(
            reprocessing=work.reprocessing,
            index=stores.dead_letters,
            queues=backends.pending,
            mine=membership.owns,
        )
        self._threads.start("dead-letters", letters, vital=False)
        begin_schedules(
            self._threads,
            stack,
            settings,
            backends,
            work=work,
            membership=membership,
            retention=retention,
            runtime=runtime,
            recorder=self._recorder,
        )
        return supervisor

    # Running.

    def _look_on(self, listeners: Listeners) -> None:
        """Wait for the end; report whenever the system becomes ready, or unready."""
        now = time.monotonic()
        crowded_until, settled = now + CROWDED_FOR, False
        share_at, sharing = now + SHARE_AFTER, False
        while not self._pause(READY_EVERY):
            if not sharing:
                sharing = self._runtime.state is SystemState.RUNNING
                if not sharing and time.monotonic() > share_at:
                    sharing = not listeners.others_are_ready()
                    share_at = time.monotonic() + SHARE_AFTER
                if sharing:
                    listeners.share()
            if not settled and (self._runtime.settled_in or time.monotonic() > crowded_until):
                settled = True
                self._settle()
            self._watch.look()
            if dead := self._watch.liveness():
                self._failure = "; ".join(dead)
                return
            self._report.leading(self._runtime.not_ready(), tenants=len(self._runtime.tenants))

    def _settle(self) -> None:
        """Return to normal operation, now that all actors are there."""
        sys.setswitchinterval(self._switch_interval)
        # Objects that exist now are there to stay. Unless they are frozen, a full collection, every
        # few seconds under load, holds up all threads: for a tenth of a second and more.
        gc.collect()
        gc.freeze()

    def _pause(self, seconds: float) -> bool:
        """Wait a little, reload and drain if asked to; return whether to stop."""
        self._heartbeat.beat()
        stop = self._signals.wait(seconds)
        self._heartbeat.beat()
        if self._signals.take_reload() and not stop:
            self._notifier.reloading()
            self._live.reload()
            self._report.reloaded()
        if self._signals.take_drain() and self._control is not None:
            self._control.drain_here()
        return stop

    def _crashed(self, reason: str) -> None:
        self._failure = reason
        self._signals.ask_to_stop()

    def _term_lost(self) -> NoReturn:
        """End at once, without an orderly stop: another daemon does all the work by now.

        This daemon's deliveries are no longer its own. The service manager restarts it, and it
        joins the nodes again.
        """
        remedy = "it joins the others once it is started again"
        log.critical("daemon.term_lost", reason="another daemon has taken the term", remedy=remedy)
        self._notifier.status("another daemon has taken the term")
        os._exit(1)

    # Stopping.

    def _shut_down(self, supervisor: Ref) -> int:
        seconds = self._live.now.shutdown.deadline_seconds
        if self._failure is not None:
            log.critical("daemon.failed", reason=self._failure)
            seconds = min(seconds, DRAIN_SECONDS)
            end_at_latest()
        log.info("daemon.stopping", deadline_seconds=seconds)
        self._notifier.stopping("draining")
        sys.setswitchinterval(CROWDED_SWITCH)
        orphans = drain_and_stop(supervisor, seconds=seconds)
        if orphans:
            report(orphans)
        elif self._failure is None:
            log.info("daemon.drained")
        return 1 if orphans or self._failure is not None else 0
