"""The front: its application, its start and its end.

The front ignores signals. It ends when the daemon says so, by a message on standard input, or when
the daemon itself ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import structlog
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.api.paging import Cursors
from tenantry.api.publisher import OnLoop, Publisher
from tenantry.api.routes.messages import MessageReading, fast_routes
from tenantry.api.routes.publishing import fast_route
from tenantry.api.routing import FastRoute, FastRoutes, way_in
from tenantry.api.services import TenantLookup
from tenantry.broker import select
from tenantry.database.errors import DatabaseError
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.front.forward import Forward
from tenantry.front.messages import Serve, Stop, Trust, WorkWith, read
from tenantry.http.identity import Identity
from tenantry.http.middleware import REQUEST_SECONDS
from tenantry.http.pool import Pool
from tenantry.http.provider import Provider
from tenantry.http.server import ApiServer
from tenantry.journal.postgres import PostgresEventStore
from tenantry.loops import Loop, PeriodicService
from tenantry.messages.port import MessageStoreError
from tenantry.messages.reader import PostgresPageReader
from tenantry.metrics.postgres import PostgresRefusals
from tenantry.metrics.refusals import EVERY, Refusals
from tenantry.process.start_checks import FRONT_FILES, connections
from tenantry.projections.tenants import PostgresLoopDirectory, PostgresTenantDirectory
from tenantry.telemetry import logging
from tenantry.tracing import Export, Tracer, open_tracer

_PATIENCE: Final = 5.0
"""Seconds a request gets beyond the daemon's own limit, so that the daemon reports a late one."""


class FrontApplication:
    """Serves the daemon's API under the same rules: some routes itself, the rest by the daemon."""

    def __init__(self, relay: socket.socket, way_in: Sequence[Middleware]) -> None:
        self._forward = Forward(relay)
        self._inner: ASGIApp = self._forward
        self._outer: ASGIApp = self._serve
        for layer in reversed(way_in):
            self._outer = layer.cls(self._outer, *layer.args, **layer.kwargs)

    def use(self, routes: Sequence[FastRoute]) -> None:
        """Serve these routes here from now on. Call it on the event loop only."""
        self._inner = FastRoutes(self._forward, routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._outer(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(scope, receive, send)


log = structlog.get_logger("front")

LOOK_AGAIN: Final = 2.0
"""Seconds between attempts to open the database."""

READERS: Final = 4
PUBLISHERS: Final = 16
LEAST_ON_LOOP: Final = 4
"""Connections for publishing without a thread: of fewer, one tenant could have all."""

STATEMENT_SECONDS: Final = 4.0
"""Seconds for a statement of the event loop that publishes: with the time it waits for a connection
less than a call has, so that nothing is stored that was answered as not confirmed in time."""

JOIN_SECONDS: Final = 5.0


def main() -> None:
    """Serve until told to stop, or until the daemon is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    messages = sys.stdin.buffer
    first = read(messages.readline() or b'{"message": "Stop"}')
    if not isinstance(first, Serve):
        return
    logging.configure(first.log_level, first.log_format)  # type: ignore[arg-type]
    logging.dump_stacks_on_sigusr1()
    provider = None if first.provider is None else Provider(**first.provider)
    identity = Identity.of(first.secrets, provider)
    rules = way_in(identity, request_timeout=REQUEST_SECONDS + _PATIENCE)
    app = FrontApplication(socket.socket(fileno=first.relay), rules)
    server = ApiServer(
        app,
        listening=socket.socket(fileno=first.descriptor),
        # Each client may need a connection to the daemon as well.
        max_connections=connections(FRONT_FILES, ways=2),
        tls=None if first.tls is None else (Path(first.tls[0]), Path(first.tls[1])),
    )
    tracer = open_tracer(None if first.tracing is None else Export(**first.tracing))
    worker = Worker(app, server, identity, tracer)
    threading.Thread(target=_listen, args=(messages, worker), name="messages", daemon=True).start()
    if identity.keys is not None:
        worker.run("provider-keys", identity.keys)
    gc.collect()
    gc.freeze()
    server.bind()
    try:
        os.write(sys.stdout.fileno(), b"serving\n")
    except BrokenPipeError:
        return  # the daemon has died meanwhile
    server.run()
    worker.close()


class Worker:
    """The front's own work once it has its backends: reading pages, and publishing."""

    def __init__(
        self, app: FrontApplication, server: ApiServer, identity: Identity, tracer: Tracer
    ) -> None:
        self.identity: Final = identity
        self._tracer = tracer
        self._app = app
        self._server = server
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._opened = ExitStack()

    def work_with(self, wanted: WorkWith) -> None:
        """Open the backends, however long that takes; until then the daemon does all the work."""
        self._thread = threading.Thread(target=self._open, args=(wanted,), name="backends")
        self._thread.start()

    def run(self, name: str, loop: Loop) -> None:
        """Run a loop on a thread of its own until `close`."""
        thread = threading.Thread(target=loop.run, name=name, daemon=True)
        thread.start()
        self._opened.callback(thread.join, JOIN_SECONDS)
        self._opened.callback(loop.stop)

    def stop(self) -> None:
        """Let the server finish its requests and end."""
        self._ended.set()
        self._server.stop(0)

    def close(self) -> None:
        """Close the backends and the tracer."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._opened.close()
        self._tracer.close()

    def _open(self, wanted: WorkWith) -> None:
        while not self._ended.is_set():
            try:
                database = Database(wanted.database_url, pool_size=wanted.pool_size)
                database.open()
            except DatabaseError as error:
                log.warning("front.no_database", error=str(error))
                self._ended.wait(LOOK_AGAIN)
            else:
                self._opened.callback(database.close)
                routes = self._fast_routes(wanted, database)
                self._server.call(partial(self._app.use, routes))
                return

    def _fast_routes(self, wanted: WorkWith, database: Database) -> list[FastRoute]:
        lookup = TenantLookup(PostgresTenantDirectory(database, PostgresEventStore(database)))
        reading = MessageReading(
            page_reader=PostgresPageReader(
                LoopQueries(database, connections=wanted.page_connections)
            ),
            lookup=lookup,
            cursors=Cursors(bytes.fromhex(wanted.cursor_key)),
            threads=Pool(READERS, weight_of=lookup.weight_of),
        )
        queries = LoopQueries(
            database,
            connections=wanted.publish_connections,
            statement_timeout=STATEMENT_SECONDS,
        )
        publishers = select.open_publishing(wanted.broker, database, queries)
        if publishers.loop is not None:
            self.run("broker-publishing", publishers.loop)
        on_loop = None
        if publishers.on_loop is not None and wanted.publish_connections >= LEAST_ON_LOOP:
            on_loop = OnLoop(publishers.on_loop, PostgresLoopDirectory(database, queries))
        publisher = Publisher(
            lookup=lookup,
            publishing=publishers.publishing,
            threads=Pool(PUBLISHERS, weight_of=lookup.weight_of),
            on_loop=on_loop,
            tracer=self._tracer,
        )
        self._keep(publisher.refusals, PostgresRefusals(database))
        return [*fast_routes(reading), fast_route(publisher)]

    def _keep(self, refusals: Refusals, store: PostgresRefusals) -> None:
        """Add the refusals counted here to those of all processes, periodically and at the end."""

        def hand_over() -> None:
            try:
                refusals.hand_over(store.add)
            except MessageStoreError as error:
                log.debug("front.refusals_not_counted", error=str(error))

        self._opened.callback(hand_over)
        self.run("refusals", PeriodicService(hand_over, every=EVERY, jitter=0.2))


def _listen(messages: BinaryIO, worker: Worker) -> None:
    for line in messages:
        match read(line):
            case WorkWith() as wanted:
                worker.work_with(wanted)
            case Trust(secrets=secrets):
                worker.identity.trust(secrets)
            case Stop():
                worker.stop()
                return
    os._exit(0)  # standard input has ended without `Stop`: the daemon is gone
