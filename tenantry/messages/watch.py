"""Checks again and again whether messages can be stored, and says why not."""

from __future__ import annotations

from typing import Final

import psycopg
import structlog

from tenantry.database.errors import DatabaseError
from tenantry.database.failures import one_line
from tenantry.database.pool import Database
from tenantry.loops import PeriodicService

log: Final = structlog.get_logger("database")

LOOK_EVERY: Final = 5.0
"""Seconds between looks."""

LONGEST_LOOK: Final = 120.0
"""Seconds after which a look counts as hanging: every wait for the database is shorter."""

REHEARSAL: Final = """
WITH counted AS (UPDATE tenantry.tenant_counters SET stored = stored WHERE false)
INSERT INTO public.messages SELECT (NULL::public.messages).* WHERE false
"""
"""Needs everything that storing needs (the rights, the term, the isolation, a server that accepts
writes), and writes no row."""


class DatabaseWatch(PeriodicService):
    """Checks whether messages can be stored."""

    def __init__(self, database: Database, *, every: float = LOOK_EVERY) -> None:
        super().__init__(self.look, every=every, longest=LONGEST_LOOK)
        self.trouble: str | None = None
        """Why nothing can be stored, or None; anyone may read it: it has no secrets and not the
        server's address."""
        self._database = database

    def look(self) -> None:
        """Look once."""
        before, self.trouble = self.trouble, self._find()
        if self.trouble is not None and self.trouble != before:
            log.warning("database.stores_nothing", error=self.trouble)
        elif self.trouble is None and before is not None:
            log.info("database.stores_again")

    def _find(self) -> str | None:
        try:
            with self._database.connection() as connection:
                connection.execute(REHEARSAL)
        except (DatabaseError, psycopg.Error) as error:
            reason = one_line(error).replace(self._database.where, "PostgreSQL")
            return f"the database stores nothing: {reason}"
        return None
