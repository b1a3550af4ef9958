"""Builds the API with its services, for a leading daemon and for a standby."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import unquote, urlsplit

from tenantry import __version__
from tenantry.api.app import create_app
from tenantry.api.asyncapi_brokers import BrokerPlace
from tenantry.api.idempotency import PostgresIdempotencyKeys
from tenantry.api.paging import kept_key
from tenantry.api.peers import Peers
from tenantry.api.publisher import PUBLISH_SECONDS
from tenantry.api.routing import way_in
from tenantry.api.services import Services
from tenantry.assembly.backends import Backends, Stores, abandoned
from tenantry.assembly.listeners import Listeners
from tenantry.assembly.standby import StandbyControl, StandbyNodes, StandbyParts, StandbyPorts
from tenantry.audit.auditor import Auditor
from tenantry.audit.postgres import PostgresAccounts
from tenantry.broker import select
from tenantry.broker.port import DeadLetters, Publishing
from tenantry.broker.rabbitmq.tls import Tls
from tenantry.control.port import Control
from tenantry.database.installation import common_cursor_key, known_cursor_key
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.database.server import Shares
from tenantry.dead_letters.replay import Reprocessing
from tenantry.front.messages import WorkWith
from tenantry.http.oidc import Logins, Registration
from tenantry.isolation.postgres import PostgresProbes
from tenantry.isolation.prover import IsolationProver
from tenantry.messages.reader import PostgresPageReader
from tenantry.metrics.collector import SystemCollector
from tenantry.metrics.page import MetricsPage
from tenantry.metrics.postgres import PostgresRefusals, PostgresStatistics
from tenantry.metrics.recorder import Recorder
from tenantry.metrics.refusals import Refusals, RefusalTotals
from tenantry.metrics.statistics import Statistics
from tenantry.nodes.cluster import NodesFromOne
from tenantry.nodes.postgres import PostgresNodes
from tenantry.page.serving import PAGE
from tenantry.projections.port import ordered_topics
from tenantry.settings import Settings
from tenantry.tracing import Tracer
from tenantry.urls import alternatives


def cursor_key(settings: Settings) -> bytes:
    """Return this daemon's own key for sealing cursors, kept in the state directory."""
    return kept_key(settings.state_dir / "cursor.key")


def reprocessing_of(
    stores: Stores,
    publishing: Publishing,
    queues: DeadLetters,
    *,
    on_listed: Callable[[str, int], None],
) -> Reprocessing:
    """Make the service that lists, replays and discards dead letters."""
    return Reprocessing(
        index=stores.dead_letters,
        queues=queues,
        publishing=publishing,
        journal=stores.journal,
        events=stores.dead_letter_events,
        publish_timeout=PUBLISH_SECONDS,
        on_listed=on_listed,
        ordered=partial(ordered_topics, stores.directory),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderWork:
    """The services of a leader that serve requests and also do work of their own."""

    auditor: Auditor
    prover: IsolationProver
    reprocessing: Reprocessing
    refusals: RefusalTotals


def open_leader_api(
    listeners: Listeners,
    settings: Settings,
    backends: Backends,
    *,
    control: Control,
    cluster: NodesFromOne,
    recorder: Recorder,
    default_workers: Callable[[], int],
    in_flight: Callable[[str], int | None],
    on_listed: Callable[[str, int], None],
    removed: Callable[[], Mapping[tuple[str, str], int]],
    node: str,
    tracer: Tracer,
    stack: ExitStack,
) -> LeaderWork:
    """Serve all requests, on the daemon's own sockets and through its front; `stack` undoes it.

    Requests for tenants of another node of the `cluster` are forwarded to that node.
    `in_flight` counts a tenant's unsettled deliveries; `on_listed` is called with numbers of dead
    letters that were found; `removed` counts removed messages by tenant and reason.
    """
    stores, links = backends.stores, backends.links
    auditor = Auditor(PostgresAccounts(stores.database), links.queues, in_flight)
    stack.callback(auditor.stop)
    prover = IsolationProver(
        directory=stores.directory,
        journal=stores.journal,
        broker=links.probes,
        database=PostgresProbes(stores.database),
        installation=backends.installation,
        tls=Tls.of(settings),
    )
    reprocessing = reprocessing_of(
        stores, links.publishing, links.dead_letters, on_listed=on_listed
    )
    refusals = Refusals()
    totals = RefusalTotals(PostgresRefusals(stores.database), refusals)
    metrics = SystemCollector(
        status=control.status,
        recorder=recorder,
        reconnects=links.reconnects,
        audits=auditor.latest,
        abandoned_handlers=lambda: abandoned(backends.handling),
        isolation=prover.latest,
        ring=links.ring,
        removed=removed,
        refused=totals.totals,
        lost_spans=lambda: _lost_spans(daemon=tracer.lost(), front=listeners.lost_spans()),
        waiting=lambda: 0 if backends.turns is None else backends.turns.waiting,
        backlog_part=lambda: 1.0 if backends.turns is None else backends.turns.rests.part,
        backlogs_held_to=lambda: 0.0 if backends.turns is None else backends.turns.backlogs.held_to,
        keys_age=_keys_age(listeners),
        data_directory=None if settings.database.url.get_secret_value() else settings.postgres_dir,
    )
    services = Services(
        control=control,
        cluster=cluster,
        peers=Peers(
            cluster.name,
            cluster.introduction,
            tokens=lambda: listeners.identity.tokens,
            trusted=() if settings.server.tls is None else settings.server.tls[:1],
        ),
        directory=stores.directory,
        journal=stores.journal,
        parts=stores.parts,
        messages=stores.messages,
        page_reader=PostgresPageReader(
            LoopQueries(stores.database, connections=backends.shares.pages)
        ),
        dead_letters=stores.dead_letters,
        cursor_key=common_cursor_key(stores.database, cursor_key(settings)),
        info={
            **describe(settings, listeners, database=stores.database.where),
            "installation": backends.installation,
        },
        publishing=links.publishing,
        idempotency=PostgresIdempotencyKeys(stores.database),
        reprocessing=reprocessing,
        auditor=auditor,
        prover=prover,
        statistics=Statistics(PostgresStatistics(stores.database)),
        metrics=listeners.with_siblings(MetricsPage(metrics), node),
        refusals=refusals,
        default_workers=default_workers,
        identity=listeners.identity,
        broker=broker_place(settings, stores.database),
        logins=_logins(settings, listeners),
        tracer=tracer,
    )
    _open(listeners, services)
    work = WorkWith(
        database_url=stores.database.url,
        cursor_key=services.cursor_key.hex(),
        broker=select.publishing_access(settings),
        pool_size=backends.shares.front_pool,
        publish_connections=backends.shares.front_publishing,
        page_connections=backends.shares.front_pages,
    )
    listeners.work_with(work)
    return LeaderWork(auditor=auditor, prover=prover, reprocessing=reprocessing, refusals=totals)


def _lost_spans(**processes: Mapping[str, int]) -> Mapping[tuple[str, str], int]:
    """Return counts of lost spans by process and reason."""
    return {
        (process, reason): count
        for process, counts in processes.items()
        for reason, count in counts.items()
    }


STANDBY_POOL: Final = 4


def open_standby_api(
    listeners: Listeners,
    settings: Settings,
    url: str,
    control: StandbyControl,
    *,
    shares: Shares,
    stack: ExitStack,
) -> None:
    """Serve read-only requests; refuse all others with the leader's name. `stack` undoes it."""
    database = Database(url, pool_size=min(STANDBY_POOL, shares.pool), read_only=True)
    stack.callback(database.close)
    database.open()
    refused, stores = StandbyPorts(control), Stores.on(database)
    metrics = SystemCollector(
        status=control.status, recorder=Recorder(), reconnects={}, keys_age=_keys_age(listeners)
    )
    services = Services(
        control=control,
        cluster=StandbyNodes(PostgresNodes(database), control),
        directory=stores.directory,
        journal=stores.journal,
        parts=StandbyParts(database, control),
        messages=stores.messages,
        page_reader=PostgresPageReader(LoopQueries(stores.database, connections=shares.pages)),
        dead_letters=stores.dead_letters,
        cursor_key=known_cursor_key(database) or cursor_key(settings),
        info=describe(settings, listeners, database=stores.database.where),
        publishing=refused,
        idempotency=refused,
        reprocessing=reprocessing_of(stores, refused, refused, on_listed=lambda *_: None),
        auditor=Auditor(PostgresAccounts(database), refused, lambda _: None),
        prover=refused,
        statistics=Statistics(PostgresStatistics(database)),
        metrics=MetricsPage(metrics),
        default_workers=lambda: settings.workers,
        identity=listeners.identity,
        broker=broker_place(settings, database),
        logins=_logins(settings, listeners),
    )
    _open(listeners, services)


def _keys_age(listeners: Listeners) -> Callable[[], float | None]:
    keys = listeners.identity.keys
    return lambda: None if keys is None else keys.age


def _logins(settings: Settings, listeners: Listeners) -> Logins | None:
    registration = Registration.of(settings)
    return None if registration is None else Logins(registration, listeners.identity)


def _open(listeners: Listeners, services: Services) -> None:
    """Serve requests with these services from now on."""
    listeners.open(create_app(services, [*way_in(listeners.identity), PAGE]), services.metrics)


def broker_place(settings: Settings, database: Database) -> BrokerPlace:
    """Return where tenants' clients find the broker."""
    told, system = select.describe(settings), select.system(settings)
    if told is None:
        parts = urlsplit(database.url_for("", ""))
        host = parts.netloc.rpartition("@")[2].partition(",")[0]
        # A Unix socket is on this machine; its directory is in the tenant's own URL.
        by_socket = not host or host.startswith(("%", "/", ":"))
        return BrokerPlace(
            system=system, host="localhost" if by_socket else host, path=unquote(parts.path[1:])
        )
    url = alternatives(settings.broker_url.get_secret_value())[0]
    host = told.get("amqp_address") or told.get("iggy_address") or "localhost"
    return BrokerPlace(
        system=system, scheme=urlsplit(url).scheme, host=host, path=told.get("vhost", "")
    )


def describe(settings: Settings, listeners: Listeners, *, database: str) -> dict[str, object]:
    """Describe a daemon that listens already; `database` is the place of its database."""
    return {
        "version": __version__,
        "rabbitmq": select.describe(settings),
        "database": {
            "embedded": not settings.database.url.get_secret_value(),
            "where": database,
        },
        "server": {
            "host": settings.server.host,
            "port": listeners.port,
            "tls": settings.server.tls is not None,
            "public_url": settings.server.public_url or None,
        },
        "metrics": {"port": listeners.metrics_port},
        "control_socket": str(settings.control_socket),
        "state_dir": str(settings.state_dir),
    }
