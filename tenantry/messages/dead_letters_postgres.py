"""The index of dead letters in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import one_line
from tenantry.messages.dead_letters import (
    LARGEST_BODY,
    DeadLetter,
    Judged,
    Known,
    Outcome,
    fingerprint,
)
from tenantry.messages.encoding import headers_json
from tenantry.messages.port import Incoming, MessageStoreError, StoreUnavailableError
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of bodies on a page, but for the first letter's."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_370_764_800_000


class PostgresDeadLetterIndex:
    """Dead letters (`DeadLetterIndex`) in the table `tenantry.dead_letters`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = queries("dead_letters")

    def keep(self, tenant_id: str, letters: Sequence[Judged]) -> list[UUID]:
        """See `DeadLetterIndex.keep`."""
        keys = [fingerprint(judged.message) for judged in letters]
        once = dict(zip(keys, letters, strict=True))
        messages = [judged.message for judged in once.values()]
        parameters = {
            "tenant": tenant_id,
            "fingerprints": list(once),
            "ids": [uuid4() for _ in once],
            "message_ids": [_text(message.id) for message in messages],
            "topics": [message.topic for message in messages],
            "partitions": [message.partition for message in messages],
            "reasons": [judged.reason for judged in once.values()],
            "errors": [_text(judged.error) for judged in once.values()],
            "first_errors": [_text(judged.first_error) for judged in once.values()],
            "attempts": [judged.attempts for judged in once.values()],
            "sizes": [len(message.body) for message in messages],
            "bodies": [
                message.body if len(message.body) <= LARGEST_BODY else None for message in messages
            ],
            "content_types": [_text(message.content_type) for message in messages],
            "headers": [_headers(message) for message in messages],
            "published": [_published_at(message) for message in messages],
        }
        with self._connection() as connection:
            rows = connection.execute(self._sql["keep"], parameters).fetchall()
        ids = {bytes(key): letter_id for key, letter_id in rows}
        return [ids[key] for key in keys]

    def page(
        self, tenant_id: str, *, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """See `DeadLetterIndex.page`."""
        parameters = {
            "tenant": tenant_id, "after": after, "limit": limit + 1, "bytes": PAGE_BYTES
        }  # fmt: skip
        with self._connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(self._sql["page"], parameters).fetchall()
        there = rows[0]["candidates"] if rows else 0
        found = rows[:limit]
        for row in found:
            del row["candidates"]
        return [DeadLetter(**row) for row in found], there > len(found)

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """See `DeadLetterIndex.named`."""
        parameters = {"tenant": tenant_id, "names": [_text(name) for name in names]}
        with self._connection() as connection:
            rows = connection.execute(self._sql["named"], parameters).fetchall()
        return {letter_id for (letter_id,) in rows}

    def find(
        self, tenant_id: str, fingerprints: Sequence[bytes], *, walk: UUID
    ) -> Mapping[bytes, Known]:
        """See `DeadLetterIndex.find`."""
        parameters = {"tenant": tenant_id, "fingerprints": list(fingerprints), "walk": walk}
        with self._connection() as connection:
            rows = connection.execute(self._sql["find"], parameters).fetchall()
        return {bytes(key): Known(letter_id, settled) for key, letter_id, settled in rows}

    def settle(self, tenant_id: str, ids: Collection[UUID], outcome: Outcome) -> None:
        """See `DeadLetterIndex.settle`."""
        self._execute("settle", tenant=tenant_id, ids=list(ids), outcome=outcome.value)

    def forget(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.forget`."""
        self._execute("forget", tenant=tenant_id, ids=list(ids))

    def forget_missing(self, tenant_id: str, *, walk: UUID, older_than: float) -> int:
        """See `DeadLetterIndex.forget_missing`."""
        parameters = {"tenant": tenant_id, "walk": walk, "age": timedelta(seconds=older_than)}
        with self._connection() as connection:
            row = connection.execute(self._sql["forget_missing"], parameters).fetchone()
        return 0 if row is None else int(row[0])

    def drop(self, tenant_id: str) -> None:
        """See `DeadLetterIndex.drop`."""
        self._execute("drop", tenant=tenant_id)

    def _execute(self, query: str, **parameters: object) -> None:
        with self._connection() as connection:
            connection.execute(self._sql[query], parameters)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._database.connection() as connection:
                yield connection
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except psycopg.Error as error:
            raise MessageStoreError(f"{self._database.where}: {one_line(error)}") from error


def _text(value: str | None) -> str | None:
    """Give a text as PostgreSQL can hold it."""
    if value is None:
        return None
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _headers(message: Incoming) -> str | None:
    return _text(headers_json(message.headers).decode()) if message.headers else None


def _published_at(message: Incoming) -> datetime | None:
    milliseconds = message.published_at_ms
    if milliseconds is None or not 0 <= milliseconds <= _LAST_MS:
        return None
    return _EPOCH + timedelta(milliseconds=milliseconds)
