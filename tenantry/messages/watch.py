"""Makes sure, again and again, that messages can be stored, and says why not."""

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
"""Seconds after which it is taken to hang: every wait for the database is shorter."""

REHEARSAL: Final = """
WITH counted AS (UPDATE tenantry.tenant_counters SET stored = stored WHERE false)
INSERT INTO public.messages SELECT (NULL::public.messages).* WHERE false
"""
"""Everything that storing needs (the rights, the term, the isolation, a server that takes writes),
and not one row."""


class DatabaseWatch(PeriodicService):
    """Looks whether messages can be stored."""

    def __init__(self, database: Database, *, every: float = LOOK_EVERY) -> None:
        super().__init__(self.look, every=every, longest=LONGEST_LOOK)
        self.trouble: str | None = None
        """Why nothing can be stored, as long as it can't; for everybody to read, without secrets
        and without the place."""
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
