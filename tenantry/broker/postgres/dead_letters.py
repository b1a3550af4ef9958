"""Tenants' dead letters on the embedded broker: `tenantry.rejected`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenantry.broker.dead_letter_table import REJECTED, TableDeadLetters
from tenantry.broker.port import QueuedDeadLetter
from tenantry.database.pool import Database
from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming
from tenantry.sql import queries


class PostgresDeadLetters(TableDeadLetters):
    """Dead letters (`tenantry.broker.port.DeadLetters`) as stored by the queues' reader."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, queries("queues"), _dead_letter)


def _dead_letter(row: Sequence[Any]) -> QueuedDeadLetter:
    """Read a row of `next_rejected`; the headers stay text."""
    _, message_id, topic, partition, body, content_type, headers, published_at_ms = row
    message = Incoming(
        message_id or None,
        topic,
        partition,
        body,
        content_type,
        None if headers is None else JsonHeaders(headers),
        published_at_ms,
    )
    return QueuedDeadLetter(message, REJECTED, None, None)
