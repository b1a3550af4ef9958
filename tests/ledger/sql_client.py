"""A tenant's own client on the embedded broker: a batch is confirmed by its commit."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import psycopg

from tests.ledger.batch_client import BatchClient
from tests.ledger.sender import Message

PUBLISH = """
SELECT tenantry.publish_many(
    %s::text[], %s::text[], %s::bytea[], %s::text[], %s::jsonb[], %s::bigint[])
"""

MANY_DIGITS = "<many digits>"
"""Stands in headers for a number of more digits than Python reads or writes."""


def _headers(made: object) -> str:
    return json.dumps(made).replace(json.dumps(MANY_DIGITS), "9" * 5_000)


class SqlClient(BatchClient):
    """Publishes with its own database role.

    Every fifth batch is published in a transaction that is rolled back first: what is rolled back
    must not be delivered, and the same ids are then published for good.
    """

    away = (psycopg.OperationalError,)
    wrong = (psycopg.Error,)
    _batches = 0

    def _connect(self) -> AbstractContextManager[psycopg.Connection]:
        return psycopg.connect(self._url, autocommit=True, connect_timeout=5)

    def _publish(self, connection: psycopg.Connection, batch: Sequence[Message]) -> None:
        now = int(time.time() * 1000)
        parameters = (
            [one.entry.target.routing_key for one in batch],
            [one.draft.message_id for one in batch],
            [one.draft.body for one in batch],
            [one.draft.content_type for one in batch],
            [None if one.draft.headers is None else _headers(one.draft.headers) for one in batch],
            [now for _ in batch],
        )
        self._batches += 1
        if self._batches % 5 == 0:
            with connection.transaction(force_rollback=True):
                connection.execute(PUBLISH, parameters)
        connection.execute(PUBLISH, parameters)
