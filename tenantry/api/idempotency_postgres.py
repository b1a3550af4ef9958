"""Idempotency keys in PostgreSQL: they outlive the daemon."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, LiteralString

from tenantry.database.failures import PortErrors
from tenantry.messages.port import MessageStoreError, StoreUnavailableError

if TYPE_CHECKING:
    from tenantry.database.pool import Database

KEEP: Final = timedelta(hours=24)
MOST: Final = 1_000_000
"""Keys kept at most, some 200 MB; with more, the oldest are forgotten before their time."""

_CLAIM: Final[LiteralString] = "SELECT tenantry.claim_idempotency_key(%s, %s, %s, %s)"


class PostgresIdempotencyKeys:
    """Idempotency keys (`tenantry.api.idempotency.IdempotencyKeys`) in a bounded table."""

    def __init__(self, database: Database, *, keep: timedelta = KEEP, most: int = MOST) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._keep = keep
        self._most = most

    def claim(self, key: bytes, fingerprint: bytes) -> bool:
        """See `IdempotencyKeys.claim`."""
        wanted = (key, fingerprint, self._keep, self._most)
        with self._errors, self._database.connection() as connection:
            row = connection.execute(_CLAIM, wanted).fetchone()
        return row is None or row[0] is None or bytes(row[0]) == fingerprint
