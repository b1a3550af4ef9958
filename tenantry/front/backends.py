"""What the front does by itself: reading pages, and publishing."""

from __future__ import annotations

import threading
from typing import Final

from tenantry.api.paging import Cursors
from tenantry.api.routes import messages, publishing
from tenantry.api.routes.messages import MessageReading
from tenantry.api.routes.publishing import Publisher
from tenantry.api.routing import FastRoute
from tenantry.api.services import TenantLookup
from tenantry.broker import select
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.front.messages import WorkWith
from tenantry.http.pool import Pool
from tenantry.journal.postgres import PostgresEventStore
from tenantry.messages.reader import PostgresPageReader
from tenantry.projections.tenants import PostgresTenantDirectory

_READERS: Final = 4
_JOIN_SECONDS: Final = 5.0


class FrontBackends:
    """Connections to the database and the broker, and the fast routes that use them.

    Raises `DatabaseError`; blocks while it connects.
    """

    def __init__(self, wanted: WorkWith) -> None:
        self._database = Database(wanted.database_url, pool_size=wanted.pool_size)
        self._database.open()
        directory = PostgresTenantDirectory(self._database, PostgresEventStore(self._database))
        lookup = TenantLookup(directory)
        reading = MessageReading(
            page_reader=PostgresPageReader(
                LoopQueries(self._database, connections=wanted.page_connections)
            ),
            lookup=lookup,
            cursors=Cursors(bytes.fromhex(wanted.cursor_key)),
            threads=Pool(_READERS),
        )
        broker, self._loop = select.open_publishing(wanted.broker, self._database)
        publisher = Publisher(lookup=lookup, publishing=broker)
        self.fast_routes: list[FastRoute] = [
            *messages.fast_routes(reading),
            publishing.fast_route(publisher),
        ]
        self._thread: threading.Thread | None = None
        if self._loop is not None:
            self._thread = threading.Thread(target=self._loop.run, name="broker-publishing")
            self._thread.start()

    def close(self) -> None:
        """Close the connections."""
        if self._loop is not None and self._thread is not None:
            self._loop.stop()
            self._thread.join(_JOIN_SECONDS)
        self._database.close()
