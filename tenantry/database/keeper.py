"""Keeps the embedded PostgreSQL running: it has no service manager but the daemon."""

from __future__ import annotations

import logging
import random
import threading
from typing import Final

from tenantry.database.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tenantry.telemetry.heartbeat import Heartbeat

LOOK_EVERY: Final = 1.0
"""Seconds between looks at whether the server runs."""

LONGEST_DELAY: Final = 10.0

LONGEST_START: Final = 300.0
"""Seconds after which it is taken to hang: every wait of a start is bounded by itself."""

log = logging.getLogger(__name__)


class PostgresKeeper:
    """Starts the server again when it has died. `run` belongs on a thread of its own."""

    def __init__(self, server: EmbeddedPostgres, *, every: float = LOOK_EVERY) -> None:
        self.heartbeat: Final = Heartbeat()
        self._server = server
        self._every = every
        self._stopping = threading.Event()

    def run(self) -> None:
        """Look after the server until `stop`."""
        delay = self._every
        while not self._stopping.wait(delay):
            self.heartbeat.beat(LONGEST_START)
            delay = self._look()
            self.heartbeat.rest()

    def stop(self) -> None:
        """End `run`; the server is left as it is."""
        self._stopping.set()

    def _look(self) -> float:
        """See that the server runs; give the seconds until the next look."""
        if self._server.running:
            return self._every
        log.error("the embedded PostgreSQL has died; starting it again")
        try:
            self._server.start()
        except EmbeddedPostgresError as error:
            log.error("%s", error)  # noqa: TRY400 - the line says it all
            return LONGEST_DELAY * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        return self._every
