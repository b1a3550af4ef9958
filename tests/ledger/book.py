"""The ledger: every client of a test, and the check of what they were promised."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from tests.ledger.audit import Audit, Findings, Key
from tests.ledger.client import Client
from tests.ledger.entries import DEFAULT, Draft, Entry, Maker, Sent, Target, entry, mixed
from tests.ledger.iggy_client import IggyClient
from tests.ledger.places import count_rejected, ready
from tests.ledger.record import Record
from tests.ledger.removing import RemovingAudit
from tests.ledger.sender import WINDOW, Sender
from tests.ledger.sql_client import SqlClient
from tests.waiting import DEADLINE, eventually

LIGHT = 40.0
"""Messages a second of all clients together. At any rate a fault finds messages in flight, and each
message costs processor time four times, from the client to the ledger's check."""

FLOWING, FLOWING_LIGHTLY = 50, 10
"""Confirms that show that a client's messages flow."""


@dataclass(slots=True, kw_only=True)
class Noted:
    """Stands among the clients for a message of a tenant's client outside the ledger."""

    tenant_id: str
    sent: dict[str, Entry] = field(default_factory=dict)
    confirmed: dict[str, Entry] = field(default_factory=dict)
    publishing: bool = False


@dataclass(slots=True, kw_only=True)
class Ledger:
    """All clients of a test. `check` compares what they were promised with what exists.

    Dead letters count as well, and are compared: those on RabbitMQ if an administrator's URL is
    given, else those in the database, as on the embedded broker and on Iggy.
    Clients without a limit publish at most `most` messages a second together.
    """

    database_url: str = field(repr=False)
    broker_url: str | None = field(default=None, repr=False)
    record: Record | None = None
    most: float = math.inf
    clients: list[Sender | Noted] = field(default_factory=list)
    ordered: set[str] = field(default_factory=set)
    """Topics whose partitions must be in order."""
    removing: bool = False
    """Whether retention removes stored messages."""
    _audit: Audit | None = None

    @contextmanager
    def publishing(
        self,
        tenants: Iterable[tuple[str, str]],
        targets: Sequence[Target] = (DEFAULT,),
        *,
        rate: float = 1500,
        window: int = WINDOW,
        limit: int | None = None,
        make: Maker = mixed,
        patience: float = DEADLINE,
        patient: bool = False,
    ) -> Iterator[list[Sender]]:
        """Publish for tenants, given as id and URL; at the end, wait for all confirms."""
        given = list(tenants)
        rate = rate if limit is not None else min(rate, self.most / max(1, len(given)))
        clients: list[Sender] = [
            _client_of(url)(
                tenant_id,
                url,
                targets,
                rate=rate,
                window=window,
                limit=limit,
                make=make,
                record=self.record,
                patient=patient,
            )
            for tenant_id, url in given
        ]
        self.clients += clients
        try:
            for client in clients:
                client.start()
            yield clients
            for client in clients:
                if not client.abandoned:
                    client.finish(patience)
        finally:
            for client in clients:
                client.abandon()

    def note(self, tenant_id: str, draft: Draft, *, confirmed: bool) -> None:
        """Write down a message of a client that is not one of the ledger's."""
        made = Noted(tenant_id=tenant_id, sent={draft.key: entry(draft, DEFAULT)})
        if self.record is not None:
            self.record.sent(tenant_id, draft.key, made.sent[draft.key])
        if confirmed:
            made.confirmed |= made.sent
            if self.record is not None:
                self.record.confirmed(tenant_id, [draft.key])
        self.clients.append(made)

    @property
    def confirmed(self) -> int:
        return sum(len(client.confirmed) for client in self.clients)

    @property
    def audit(self) -> Audit:
        if self._audit is None:
            kind = RemovingAudit if self.removing else Audit
            self._audit = kind(self.database_url, self.broker_url, self.ordered)
        return self._audit

    def wait_confirmed(self, more: int | None = None, *, timeout: float = DEADLINE) -> None:
        """Wait until every client that still publishes has `more` confirms than now.

        The default is as many as show that messages flow.
        """
        if more is None:
            more = FLOWING if math.isinf(self.most) else FLOWING_LIGHTLY
        before = {one: len(one.confirmed) for one in self.clients if one.publishing}
        eventually(
            lambda: all(len(one.confirmed) >= count + more for one, count in before.items()),
            timeout=timeout,
            what=f"{more} more confirms for every client",
        )

    def stored(self) -> int:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM public.messages").fetchone()
            assert row is not None
            return int(row[0])

    def follow(self) -> int:
        """Read the new rows; return the number of all rows."""
        return self.audit.follow(self._sent())

    def check(
        self, *, timeout: float = DEADLINE, alive: Callable[[], object] = lambda: None
    ) -> None:
        """Every confirmed message is in its place once and unchanged; nothing else is."""

        def complete() -> bool:
            alive()
            return self.follow() + self.dead_letters() >= self.confirmed

        until = time.monotonic() + timeout
        while True:
            try:
                eventually(
                    complete,
                    timeout=timeout,
                    what=f"{self.confirmed} rows or dead letters, one a confirm",
                )
            except AssertionError as late:
                raise AssertionError(f"{late}; the ledger: {self.judge()}") from late
            found = self.judge()
            # Messages sent and not confirmed count as well: they may have arrived before the rest.
            if not found.missing or time.monotonic() > until:
                break
        assert found.clean, str(found)

    def promised(self) -> set[Key]:
        """Name what has been confirmed until now."""
        return {
            (client.tenant_id, key) for client in self.clients for key in tuple(client.confirmed)
        }

    def outstanding(self, promised: set[Key]) -> set[Key]:
        """Name what of it has no row yet; a dead letter counts once queues were looked into."""
        self.follow()
        return self.audit.missing(promised)

    def judge(self, queues: dict[str, Sequence[str]] | None = None) -> Findings:
        """Compare now, whatever is still under way; `queues` that are looked into, a tenant's."""
        sent = self._sent()
        self.audit.follow(sent)
        self.audit.look_into_queues(sent.tenants, queues or {})
        return self.audit.judge(sent, self.promised())

    def dead_letters(self) -> int:
        """Count what lies in the tenants' dead-letter queues."""
        tenants = {client.tenant_id for client in self.clients}
        if self.broker_url is None:
            with psycopg.connect(self.database_url) as connection:
                return count_rejected(connection, sorted(tenants))
        return ready(self.broker_url, [f"tenant_{one}_dead_letters" for one in tenants])

    def _sent(self) -> Sent:
        entries: dict[str, list[dict[str, Entry]]] = {}
        for client in self.clients:
            entries.setdefault(client.tenant_id, []).append(client.sent)
        return Sent(entries)


def _client_of(url: str) -> type[Sender]:
    if url.startswith("amqp"):
        return Client
    return IggyClient if url.startswith("iggy") else SqlClient
