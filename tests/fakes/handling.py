"""A store whose topic `events` has a handler, on a real PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tenantry.database.pool import Database
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.handlers.attempts import RetryPolicy
from tenantry.handlers.handler_pool import HandlerPool
from tenantry.handlers.message import Handler, Message
from tenantry.handlers.store import HandlingStore
from tenantry.messages.port import Incoming, StoreResult, Tried
from tenantry.messages.postgres import PostgresMessageStore
from tests.waiting import DEADLINE

TENANT = "t"
PAUSES = (1000.0, 2000.0, 3000.0)


def incoming(
    identity: str | None = "1",
    body: object = None,
    topic: str = "events",
    content_type: str | None = "application/json",
    headers: dict[str, object] | None = None,
) -> Incoming:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(identity, topic, 0, data, content_type, headers, None)


class World:
    """A store whose topic `events` has a handler, and the table the handler writes to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.plain = PostgresMessageStore(database)
        self.plain.create_partition(TENANT)
        self.letters = PostgresDeadLetterIndex(database)
        self.seen: list[Message] = []
        self.overruns: list[str] = []
        self._open: list[Any] = []
        with database.connection() as connection:
            connection.execute(
                "CREATE TABLE public.effects (id text, attempt integer,"
                " at timestamptz DEFAULT clock_timestamp())"
            )

    def store(
        self,
        act: Handler = lambda message, cursor: None,
        *,
        timeout: float = DEADLINE,
        **options: Any,
    ) -> HandlingStore:
        """Make a store; the handler notes what it sees, writes a row, then does `act`.

        With `bare`, it only does `act`.
        """

        def handler(message: Message, cursor: psycopg.Cursor[Any]) -> object:
            self.seen.append(message)
            cursor.execute("INSERT INTO effects VALUES (%s, %s)", [message.id, message.attempt])
            return act(message, cursor)

        bare = options.pop("bare", False)
        database = self.database.beside(
            pool_size=4, statement_timeout=DEADLINE, idle_timeout=DEADLINE
        )
        database.open()
        pool = HandlerPool(places=4, timeout=timeout, on_overrun=self.overruns.append)
        self._open += [pool, database]
        self.pool = pool
        return HandlingStore(
            self.database,
            database,
            {"events": act if bare else handler},
            pool=pool,
            retry=RetryPolicy(attempts=options.pop("attempts", 3), pauses=PAUSES),
            turn=options.pop("turn", DEADLINE),
            **options,
        )

    def close(self) -> None:
        for one in self._open:
            one.close()

    def effects(self) -> list[tuple[str, int]]:
        with self.database.connection() as connection:
            rows = connection.execute(
                "SELECT id, attempt FROM public.effects ORDER BY 1, 2"
            ).fetchall()
        return [(identity, attempt) for identity, attempt in rows]

    def handled(self) -> list[str]:
        """Give the ids in the order in which their handlers did what has stayed."""
        with self.database.connection() as connection:
            rows = connection.execute("SELECT id FROM public.effects ORDER BY at").fetchall()
        return [identity for (identity,) in rows]

    def renew(self) -> None:
        """Begin anew, with nothing stored."""
        self.plain.drop_partition(TENANT, retain=False)
        self.plain.create_partition(TENANT)
        self.seen.clear()
        with self.database.connection() as connection:
            connection.execute("DELETE FROM public.effects")

    def stored(self) -> set[str]:
        return {row.id for row in self.plain.page(TENANT, limit=1000)}

    def attempts(self) -> list[dict[str, Any]]:
        with (
            self.database.connection() as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute("SELECT * FROM tenantry.attempts ORDER BY updated_at").fetchall()

    def make_due(self) -> None:
        with self.database.connection() as connection:
            connection.execute("UPDATE tenantry.attempts SET not_before = clock_timestamp()")


def fails(*ids: str, error: type[BaseException] = ValueError) -> Handler:
    def act(message: Message, cursor: object) -> None:
        if message.id in ids:
            raise error(f"no {message.id} at {message.attempt}")

    return act


def tried(result: StoreResult) -> dict[int, Tried | None]:
    return {place: one.tried for place, one in enumerate(result.held)}
