"""Keeps the embedded PostgreSQL running: it has no service manager but the daemon."""

from __future__ import annotations

import logging
import random
import time
from typing import Final

from tenantry.database.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tenantry.loops import PeriodicService

LOOK_EVERY: Final = 1.0
"""Seconds between looks at whether the server runs."""

LONGEST_DELAY: Final = 10.0

LONGEST_START: Final = 300.0
"""Seconds after which it is taken to hang: every wait of a start is bounded by itself."""

log = logging.getLogger(__name__)


class PostgresKeeper(PeriodicService):
    """Starts the server again when it has died; `stop` leaves it as it is."""

    def __init__(self, server: EmbeddedPostgres, *, every: float = LOOK_EVERY) -> None:
        super().__init__("postgres-keeper", self._look, every=every, longest=LONGEST_START)
        self._server = server
        self._not_before = 0.0

    def _look(self) -> None:
        if time.monotonic() < self._not_before or self._server.running:
            return
        log.error("the embedded PostgreSQL has died; starting it again")
        try:
            self._server.start()
        except EmbeddedPostgresError as error:
            log.error("%s", error)  # noqa: TRY400 - the line says it all
            pause = LONGEST_DELAY * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            self._not_before = time.monotonic() + pause
