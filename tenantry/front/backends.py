"""What the front does by itself: reading pages, and publishing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from tenantry.api.app import PUBLISH_SECONDS
from tenantry.api.cursors import Cursors
from tenantry.api.lanes import Lane
from tenantry.api.partitions import Router
from tenantry.api.routes import messages, publishing
from tenantry.broker import select
from tenantry.broker.port import Publishing
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.front.messages import WorkWith
from tenantry.http.pool import Pool
from tenantry.journal.postgres import PostgresEventStore
from tenantry.messages.port import PageReader
from tenantry.messages.reader import PostgresPageReader
from tenantry.projections.port import TenantDirectory
from tenantry.projections.tenants import PostgresTenantDirectory

_READERS: Final = 4
_PUBLISHERS: Final = 16
_JOIN_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    page_reader: PageReader
    directory: TenantDirectory
    cursors: Cursors
    threads: Pool = field(default_factory=lambda: Pool(_READERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Publishers:
    directory: TenantDirectory
    publishing: Publishing
    router: Router = field(default_factory=Router)
    publish_timeout: float = PUBLISH_SECONDS
    publish_threads: Pool = field(default_factory=lambda: Pool(_PUBLISHERS))


class FrontBackends:
    """Connections to the database and the broker, and the lanes that use them.

    Raises `DatabaseError`; blocks while it connects.
    """

    def __init__(self, wanted: WorkWith) -> None:
        self._database = Database(wanted.database_url, pool_size=wanted.pool_size)
        self._database.open()
        directory = PostgresTenantDirectory(self._database, PostgresEventStore(self._database))
        reading = _Reading(
            page_reader=PostgresPageReader(
                LoopQueries(self._database, connections=wanted.page_connections)
            ),
            directory=directory,
            cursors=Cursors(bytes.fromhex(wanted.cursor_key)),
        )
        broker, self._loop = select.open_publishing(wanted.broker, self._database)
        publishers = _Publishers(directory=directory, publishing=broker)
        self.lanes: list[Lane] = [*messages.lanes(reading), publishing.lane(publishers)]
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
