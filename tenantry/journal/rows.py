"""Rows of `tenantry.events` as recorded events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any

from tenantry.database.failures import UNFIT, PortErrors
from tenantry.database.pool import Connection, Database
from tenantry.journal.codec import CODEC, decode_metadata
from tenantry.journal.port import JournalError, JournalUnavailableError, RecordedEvent


def recorded_event(row: tuple[Any, ...]) -> RecordedEvent:
    """Read a row: position, stream, version, id, type, schema_version, data, metadata, time.

    Raises `UnknownEventError`, `JournalError`.
    """
    position, stream, version, one, name, schema_version, data, metadata, recorded_at = row
    return RecordedEvent(
        position=position,
        stream=stream,
        version=version,
        id=one,
        event=CODEC.decode(name, schema_version, data),
        metadata=decode_metadata(metadata),
        recorded_at=recorded_at.astimezone(UTC),
    )


@contextmanager
def journal_connection(database: Database) -> Iterator[Connection]:
    """Lend a connection; the database's failures become the journal's."""
    errors = PortErrors(
        JournalUnavailableError, JournalError, where=database.where, waited_for=UNFIT
    )
    with errors, database.connection() as connection:
        yield connection
