"""A tenant's own client on the embedded broker: a batch is confirmed by its commit."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tests.ledger.client import EVERY
from tests.ledger.entries import Draft, Entry, Maker, Target, entry, mixed
from tests.ledger.record import Record
from tests.waiting import DEADLINE

BATCH = 50
RETRY_AFTER = 0.05

PUBLISH = """
SELECT tenantry.publish_many(
    %s::text[], %s::text[], %s::bytea[], %s::text[], %s::jsonb[], %s::bigint[])
"""

MANY_DIGITS = "<many digits>"
"""Stands in headers for a number of more digits than Python reads or writes."""


def _headers(made: object) -> str:
    return json.dumps(made).replace(json.dumps(MANY_DIGITS), "9" * 5_000)


@dataclass(frozen=True, slots=True)
class _Message:
    draft: Draft
    entry: Entry


class SqlClient:
    """Publishes with its own database role; what was not confirmed it publishes again.

    Its methods are those of `tests.ledger.client.Client`. Every fifth batch is published in a
    transaction that is rolled back first: what is rolled back must not be delivered, and the same
    ids are then published for good.
    """

    def __init__(
        self,
        tenant_id: str,
        url: str,
        targets: Sequence[Target],
        *,
        rate: float,
        window: int = BATCH,
        limit: int | None = None,
        make: Maker = mixed,
        record: Record | None = None,
        patient: bool = False,
    ) -> None:
        self.tenant_id = tenant_id
        self.confirmed: dict[str, Entry] = {}
        self.sent: dict[str, Entry] = {}
        self.errors: list[str] = []
        self.connections = 0
        self._url = url
        self._targets = itertools.cycle(targets)
        self._rate = rate
        self._window = min(window, BATCH)
        self._limit = limit
        self._make = make
        self._record = record
        self._patient = patient
        self._count = 0
        self._batches = 0
        self._began = 0.0
        self._finishing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client-{tenant_id}")

    def start(self) -> None:
        self._began = time.monotonic()
        self._thread.start()

    @property
    def publishing(self) -> bool:
        return not (self._finishing.is_set() or self.abandoned)

    @property
    def abandoned(self) -> bool:
        return self._abandoned.is_set()

    def finish(self, timeout: float = DEADLINE) -> None:
        """Send nothing new, and return once everything sent is confirmed."""
        self._finishing.set()
        self._thread.join(timeout)
        self.abandon()
        assert not self.errors, self.errors[:3]
        assert self.sent.keys() == self.confirmed.keys()

    def abandon(self) -> None:
        """End at once, whatever is unconfirmed; harmless after `finish`."""
        self._abandoned.set()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        batch: list[_Message] = []
        while not self._abandoned.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    self.connections += 1
                    while not self._abandoned.is_set():
                        batch = batch or self._next()
                        if batch:
                            self._publish(connection, batch)
                            batch = []
                        elif self._finishing.is_set():
                            return
                        else:
                            self._abandoned.wait(EVERY)
            except psycopg.OperationalError:
                self._abandoned.wait(RETRY_AFTER)
            except psycopg.Error as error:
                if not self._patient:
                    self.errors.append(repr(error))
                    return
                self._abandoned.wait(RETRY_AFTER)

    def _next(self) -> list[_Message]:
        if self._finishing.is_set():
            return []
        due = int((time.monotonic() - self._began) * self._rate) - self._count
        if self._limit is not None:
            due = min(due, self._limit - self._count)
        return [self._one() for _ in range(min(due, self._window))]

    def _one(self) -> _Message:
        self._count += 1
        draft = self._make(self.tenant_id, self._count)
        message = _Message(draft, entry(draft, next(self._targets)))
        self.sent[draft.key] = message.entry
        if self._record is not None:
            self._record.sent(self.tenant_id, draft.key, message.entry)
        return message

    def _publish(self, connection: psycopg.Connection, batch: Sequence[_Message]) -> None:
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
        if self._record is not None:
            self._record.confirmed(self.tenant_id, [one.draft.key for one in batch])
        for one in batch:
            self.confirmed[one.draft.key] = one.entry
