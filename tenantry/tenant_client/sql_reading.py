"""A tenant's own consumer on the embedded broker: leases stored messages, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import psycopg

from tenantry.database.failures import one_line
from tenantry.tenant_client.amqp import TIMEOUT, TenantClientError
from tenantry.tenant_client.sql import SqlClient

PAUSE: Final = 0.05
"""Seconds between polls while nothing arrives."""

_RECEIVE: Final = """
SELECT lease, coalesce(body, convert_to(payload::text, 'UTF8')) FROM tenantry.receive(%s, %s)
"""
_SETTLE: Final = "SELECT tenantry.settle(%s)"


class SqlReader(SqlClient):
    """Reads a topic (`TopicReader`). A lease lasts a minute, and ends with its session."""

    def __init__(self, url: str, *, topic: str, name: str, timeout: float = TIMEOUT) -> None:
        super().__init__(url, name=name, timeout=timeout)
        self._topic = topic
        self._lease: int | None = None

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """See `TopicReader.receive`."""
        until = time.monotonic() + seconds
        while True:
            rows = self._ask(_RECEIVE, self._topic, most)
            if rows:
                self._lease = int(str(rows[0][0]))
                return [bytes(body) for _, body in rows]  # type: ignore[call-overload]
            self._lease = None
            if (left := until - time.monotonic()) <= 0:
                return []
            time.sleep(min(PAUSE, left))

    def commit(self) -> None:
        """See `TopicReader.commit`."""
        if self._lease is not None and self._ask(_SETTLE, self._lease) != [(True,)]:
            raise TenantClientError("it took too long: another consumer has been given the batch")
        self._lease = None

    def at_end(self) -> bool:
        """See `TopicReader.at_end`: the last poll found nothing."""
        return self._lease is None

    def _ask(self, query: str, *parameters: object) -> list[tuple[object, ...]]:
        try:
            return self._open_connection().execute(query.encode(), parameters).fetchall()
        except psycopg.Error as error:
            self.close()
            raise TenantClientError(one_line(error)) from error
