"""Keeps the embedded PostgreSQL running: it has no service manager but the daemon."""

from __future__ import annotations

import logging
import random
import threading
from typing import Final

from tenantry.database.embedded import EmbeddedPostgres, EmbeddedPostgresError

LOOK_EVERY: Final = 1.0
"""Seconds between looks at whether the server runs."""

LONGEST_DELAY: Final = 10.0

log = logging.getLogger(__name__)


class PostgresKeeper:
    """Starts the server again when it has died. `run` belongs on a thread of its own."""

    def __init__(self, server: EmbeddedPostgres, *, every: float = LOOK_EVERY) -> None:
        self._server = server
        self._every = every
        self._stopping = threading.Event()

    def run(self) -> None:
        """Look after the server until `stop`."""
        delay = self._every
        while not self._stopping.wait(delay):
            delay = self._every
            if self._server.running:
                continue
            log.error("the embedded PostgreSQL has died; starting it again")
            try:
                self._server.start()
            except EmbeddedPostgresError as error:
                log.error("%s", error)  # noqa: TRY400 - the line says it all
                delay = LONGEST_DELAY * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def stop(self) -> None:
        """End `run`; the server is left as it is."""
        self._stopping.set()
