"""The index of dead letters in PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID, uuid4

from psycopg.rows import dict_row

from tenantry.database.failures import PortErrors
from tenantry.dead_letters.matching import (
    Matching,
    Row,
    Wanted,
    wanted_for_found,
    wanted_for_rejected,
)
from tenantry.dead_letters.port import (
    EVERYTHING,
    LARGEST_BODY,
    DeadLetter,
    IndexedDeadLetter,
    Intent,
    KnownDeadLetter,
    Preview,
    QueueMessage,
    RejectedMessage,
    Selection,
    Work,
)
from tenantry.messages.encoding import LAST_MS, headers_json
from tenantry.messages.port import Incoming, MessageStoreError, StoreUnavailableError
from tenantry.messages.validation import shown
from tenantry.sql import queries

if TYPE_CHECKING:
    from tenantry.database.pool import Connection, Database

T = TypeVar("T")

PAGE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of bodies on a page, but for the first dead letter's."""

PATIENCE: Final = 10.0
"""Seconds that one thread waits for others that work on the dead letters of the same tenant."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class PostgresDeadLetterIndex:
    """Dead letters (`DeadLetterIndex`) in the table `tenantry.dead_letters`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._sql = queries("dead_letters")
        self._alone = Alone(patience=PATIENCE)

    def add(self, tenant_id: str, rejected: Sequence[RejectedMessage]) -> list[IndexedDeadLetter]:
        """See `DeadLetterIndex.add`."""
        return self._match(
            tenant_id,
            None,
            wanted_for_rejected(rejected),
            lambda matching: [matching.add(one) for one in rejected],
        )

    def lookup(
        self, tenant_id: str, found: Sequence[QueueMessage], *, browse: UUID
    ) -> list[KnownDeadLetter]:
        """See `DeadLetterIndex.lookup`."""
        return self._match(
            tenant_id,
            browse,
            wanted_for_found(found),
            lambda matching: matching.lookup(found),
        )

    def begin(self, tenant_id: str, ids: Collection[UUID], intent: Intent) -> None:
        """See `DeadLetterIndex.begin`."""
        given = {"ids": list(ids), "intent": intent.id, "work": intent.work.value}
        self._change(tenant_id, given, "begin")

    def withdraw(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.withdraw`."""
        self._change(tenant_id, {"ids": list(ids)}, "withdraw")

    def settle(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.settle`."""
        self._change(tenant_id, {"ids": list(ids)}, "settle", "came_back")

    def intended(self, tenant_id: str, intent: UUID) -> list[UUID]:
        """See `DeadLetterIndex.intended`."""
        return [row[0] for row in self._fetch("intended", tenant=tenant_id, intent=intent)]

    def recorded(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.recorded`."""
        self._change(tenant_id, {"ids": list(ids)}, "recorded")

    def gone(self, tenant_id: str, ids: Collection[UUID]) -> None:
        """See `DeadLetterIndex.gone`."""
        self._change(tenant_id, {"ids": list(ids)}, "gone")

    def forget_missing(self, tenant_id: str, *, browse: UUID, older_than: float) -> int:
        """See `DeadLetterIndex.forget_missing`."""
        given = {"browse": browse, "age": timedelta(seconds=older_than)}
        _, missing, _ = self._change(tenant_id, given, "gone_unmet", "missing", "forget_missing")
        return missing

    def sweep(self, *, older_than: float) -> int:
        """See `DeadLetterIndex.sweep`."""
        given = {"age": timedelta(seconds=older_than)}
        with self._errors, self._database.connection() as connection:
            return connection.execute(self._sql["sweep"], given).rowcount

    def page(
        self, tenant_id: str, *, which: Selection = EVERYTHING, after: int = 0, limit: int = 50
    ) -> tuple[list[DeadLetter], bool]:
        """See `DeadLetterIndex.page`."""
        parameters = _selected(which) | {
            "tenant": tenant_id, "after": after, "limit": limit + 1, "bytes": PAGE_BYTES
        }  # fmt: skip

        def read(connection: Connection) -> list[dict[str, Any]]:
            cursor = connection.cursor(row_factory=dict_row)
            return cursor.execute(self._sql["page"], parameters).fetchall()

        with self._errors:
            rows = self._database.read(read)
        there = rows[0]["candidates"] if rows else 0
        found = rows[:limit]
        for row in found:
            del row["candidates"]
        return [DeadLetter(**row) for row in found], there > len(found)

    def preview(self, tenant_id: str, which: Selection, *, most_replays: int) -> Preview:
        """See `DeadLetterIndex.preview`."""
        (_, _, count, worn, as_of), *places = self._fetch(
            "preview", tenant=tenant_id, most=most_replays, **_selected(which)
        )
        return Preview(
            as_of=as_of,
            count=count,
            worn=worn,
            places={(topic, partition): number for topic, partition, number, _, _ in places},
        )

    def named(self, tenant_id: str, names: Collection[str]) -> set[UUID]:
        """See `DeadLetterIndex.named`."""
        rows = self._fetch("named", tenant=tenant_id, names=[_text(name) for name in names])
        return {row[0] for row in rows}

    def counts(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """See `DeadLetterIndex.counts`."""
        return {row[0]: row[1] for row in self._fetch("counts", tenants=list(tenant_ids))}

    def unfinished(self) -> set[str]:
        """See `DeadLetterIndex.unfinished`."""
        return {row[0] for row in self._fetch("unfinished")}

    def _match(
        self,
        tenant_id: str,
        browse: UUID | None,
        wanted: Wanted,
        work: Callable[[Matching], T],
    ) -> T:
        """Match messages with the rows there are, alone, and write what comes of it."""
        alike = [fingerprint for fingerprint, _ in wanted.alike]
        given = {
            "tenant": tenant_id,
            "browse": browse,
            "fingerprints": [*wanted.named, *alike],
            "named": wanted.named,
            "ids": wanted.ids,
            "alike": alike,
            "died": [died_at for _, died_at in wanted.alike],
            "most": list(wanted.alike.values()),
        }
        with (
            self._alone.with_tenant(tenant_id),
            self._errors,
            self._database.transaction() as connection,
        ):
            locked = connection.execute(self._sql["lock"], given).fetchone()
            now = None if locked is None else locked[1]
            if browse is None:
                connection.execute(self._sql["attempts_over"], given)
            with connection.cursor(row_factory=dict_row) as cursor:
                found = cursor.execute(self._sql["rows"], given).fetchall()
            rows = {row.id: row for row in map(_row, found)}.values()
            matching = Matching(rows, new_id=uuid4, now=now or datetime.now(UTC), browse=browse)
            done = work(matching)
            self._write(connection, tenant_id, matching)
        return done

    def _write(self, connection: Connection, tenant_id: str, matching: Matching) -> None:
        changed = [row for row in matching.changed.values() if row.content is None]
        again = [row for row in matching.changed.values() if row.content is not None]
        for query, rows in (
            ("add", matching.new),
            ("relist", again),
            ("change", changed),
        ):
            if rows:
                connection.execute(self._sql[query], {"tenant": tenant_id} | _columns(rows))
        if again:
            ids = [{"tenant": tenant_id, "id": row.id} for row in again]
            connection.cursor().executemany(self._sql["to_the_end"], ids)
        if matching.fresh:
            parameters = {"tenant": tenant_id, "fresh": matching.fresh}
            connection.execute(self._sql["count_dead"], parameters)

    def _change(self, tenant_id: str, given: dict[str, object], *queries: str) -> list[int]:
        """Run queries in a transaction that alone changes the tenant's; give how many rows each.

        Without that, a call that settles dead letters and one that lists others could wait for each
        other: both change dead letters, and the tenant's totals.
        """
        given["tenant"] = tenant_id
        with (
            self._alone.with_tenant(tenant_id),
            self._errors,
            self._database.transaction() as connection,
        ):
            connection.execute(self._sql["lock"], given)
            return [connection.execute(self._sql[query], given).rowcount for query in queries]

    def _fetch(self, query: str, **parameters: object) -> list[Any]:
        def read(connection: Connection) -> list[Any]:
            return connection.execute(self._sql[query], parameters).fetchall()

        with self._errors:
            return self._database.read(read)


@dataclass(slots=True)
class _Door:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Alone:
    """A lock for each tenant, with a timeout; threads of different tenants do not wait.

    The database has such a lock as well, for all nodes. But a thread that waits there holds a
    connection, and a tenant with many workers would hold nearly all of them.
    """

    def __init__(self, *, patience: float) -> None:
        """`patience` is the longest wait, in seconds."""
        self._patience = patience
        self._guard = threading.Lock()
        self._doors: dict[str, _Door] = {}

    @contextmanager
    def with_tenant(self, tenant_id: str) -> Iterator[None]:
        """Hold the tenant's lock. Raises `StoreUnavailableError` if that takes too long."""
        with self._guard:
            door = self._doors.setdefault(tenant_id, _Door())
            door.users += 1
        try:
            if not door.lock.acquire(timeout=self._patience):
                raise StoreUnavailableError(
                    f"the dead letters of tenant {tenant_id!r} are being worked on by others"
                )
            try:
                yield
            finally:
                door.lock.release()
        finally:
            with self._guard:
                door.users -= 1
                if not door.users:
                    del self._doors[tenant_id]


def _row(columns: dict[str, Any]) -> Row:
    work, intent = columns.pop("work"), columns.pop("intent")
    columns["fingerprint"] = bytes(columns["fingerprint"])
    return Row(**columns, intent=None if intent is None else Intent(intent, Work(work)))


_OF_A_ROW: Final = (
    "was", "id", "fingerprint", "copy", "replays", "failed", "died_at", "seen_in", "recorded",
    "reason", "error", "first_error", "attempts", "dead_lettered_at",
)  # fmt: skip


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Give rows as the arrays that the queries take; the messages' where there are any."""
    columns: dict[str, Any] = {
        name: [_storable(getattr(row, name)) for row in rows] for name in _OF_A_ROW
    }
    messages = [row.content for row in rows if row.content is not None]
    if not messages:
        return columns
    return columns | {
        "message_ids": [_text(shown(message.id)) for message in messages],
        "topics": [message.topic for message in messages],
        "partitions": [message.partition for message in messages],
        "sizes": [len(message.body) for message in messages],
        "bodies": [
            message.body if len(message.body) <= LARGEST_BODY else None for message in messages
        ],
        "content_types": [_text(shown(message.content_type)) for message in messages],
        "headers": [_headers(message) for message in messages],
        "published": [_published_at(message) for message in messages],
    }


def _selected(which: Selection) -> dict[str, object]:
    return {
        "names": None if which.names is None else [_text(name) for name in which.names],
        "reason": _text(which.reason),
        "topic": _text(which.topic),
        "since": which.since,
        "until": which.until,
    }


def _text(value: str | None) -> str | None:
    """Give a text as PostgreSQL can hold it."""
    if value is None:
        return None
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _storable(value: object) -> object:
    return _text(value) if isinstance(value, str) else value


def _headers(message: Incoming) -> str | None:
    if not message.headers:
        return None
    text = headers_json(message.headers)
    return _text(text.decode()) if len(text) <= LARGEST_BODY else None


def _published_at(message: Incoming) -> datetime | None:
    milliseconds = message.published_at_ms
    if milliseconds is None or not 0 <= milliseconds <= LAST_MS:
        return None
    return _EPOCH + timedelta(milliseconds=milliseconds)
