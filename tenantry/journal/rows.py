"""Rows of `tenantry.events` as recorded events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Any

import psycopg

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import UNFIT, one_line
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
    try:
        with database.connection() as connection:
            yield connection
    except DatabaseUnavailableError as error:
        raise JournalUnavailableError(str(error)) from error
    except UNFIT as error:
        raise JournalUnavailableError(f"{database.where}: {one_line(error)}") from error
    except psycopg.Error as error:
        raise JournalError(f"{database.where}: {one_line(error)}") from error
