"""What the broker has confirmed to tenants' clients, and whether exactly that is stored."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pika
import psycopg
from pika.exceptions import AMQPError

from tests.waiting import eventually

WINDOW = 200
"""Messages a client leaves unconfirmed at most."""

RECONNECT_AFTER = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where messages go, and where they must turn up."""

    routing_key: str
    topic: str
    partition: int


DEFAULT = Target(routing_key="default", topic="default", partition=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A message as it was sent: its place, and a digest of its content."""

    target: Target
    content_type: str
    digest: str


@dataclass(slots=True)
class _Message:
    id: str
    body: bytes
    entry: Entry


class Client:
    """A tenant's own client: publishes with confirms, reconnects, sends the unconfirmed again.

    Every third message is no JSON. `start` and `finish` are the owner's to call.
    """

    def __init__(
        self, tenant_id: str, url: str, targets: Sequence[Target], *, rate: float, window: int
    ) -> None:
        self.tenant_id = tenant_id
        self.confirmed: dict[str, Entry] = {}
        self.sent: set[str] = set()
        self.errors: list[str] = []
        self.connections = 0
        self._stream = f"tenant_{tenant_id}_stream"
        self._targets = itertools.cycle(targets)
        self._rate = rate
        self._window = window
        self._parameters = pika.URLParameters(url)
        self._parameters.socket_timeout = 5
        self._parameters.stack_timeout = 5
        self._again: deque[_Message] = deque()
        self._unconfirmed: dict[int, _Message] = {}
        self._tag = 0
        self._count = 0
        self._began = 0.0
        self._finishing = threading.Event()
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._connection: pika.SelectConnection | None = None
        self._channel: Any = None
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

    def finish(self, timeout: float = 20.0) -> None:
        """Send nothing new, and return once everything sent is confirmed."""
        self._finishing.set()
        self._wake()
        self._thread.join(timeout)
        alive = self._thread.is_alive()
        self.abandon()
        if alive:
            raise AssertionError(
                f"{self.tenant_id}: {len(self.sent) - len(self.confirmed)} messages were not"
                f" confirmed within {timeout:g} s"
            )
        assert not self.errors, self.errors[:3]
        assert self.sent == set(self.confirmed)

    def abandon(self) -> None:
        """End at once, whatever is unconfirmed; harmless after `finish`."""
        self._abandoned.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _wake(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.ioloop.add_callback_threadsafe(self._more)

    def _run(self) -> None:
        while not self._done():
            connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=lambda c, _: c.ioloop.stop(),
                on_close_callback=lambda c, _: c.ioloop.stop(),
            )
            with self._lock:
                self._connection = connection
            try:
                connection.ioloop.start()
            except (AMQPError, OSError) as error:
                self.errors.append(repr(error))
            finally:
                with self._lock:
                    self._connection = None
                self._channel = None
                connection.ioloop.close()
            # In the order of their tags; the broker may have them already, under the same ids.
            self._again.extendleft(reversed(self._unconfirmed.values()))
            self._unconfirmed.clear()
            self._abandoned.wait(RECONNECT_AFTER)

    def _done(self) -> bool:
        return self._abandoned.is_set() or (
            self._finishing.is_set() and not self._unconfirmed and not self._again
        )

    def _opened(self, connection: pika.SelectConnection) -> None:
        self.connections += 1
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        self._tag = 0
        channel.add_on_return_callback(
            lambda _c, method, *_: self.errors.append(f"returned: {method.reply_text}")
        )
        channel.add_on_close_callback(lambda *_: self._close())
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._tick())

    def _tick(self) -> None:
        self._more()
        connection = self._connection
        if connection is not None and self._channel is not None and connection.is_open:
            connection.ioloop.call_later(0.005, self._tick)

    def _close(self) -> None:
        self._channel = None
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.close()

    def _more(self) -> None:
        channel = self._channel
        if self._done() and self._connection is not None:
            if self._connection.is_open:
                self._close()
            return
        while channel is not None and channel.is_open and len(self._unconfirmed) < self._window:
            if self._again:
                message = self._again.popleft()
            elif self._finishing.is_set():
                return
            elif self._count < (time.monotonic() - self._began) * self._rate:
                message = self._next()
            else:
                return
            self._tag += 1
            self._unconfirmed[self._tag] = message
            channel.basic_publish(
                self._stream,
                message.entry.target.routing_key,
                message.body,
                pika.BasicProperties(
                    delivery_mode=2,
                    message_id=message.id,
                    content_type=message.entry.content_type,
                ),
                mandatory=True,
            )

    def _next(self) -> _Message:
        self._count += 1
        identity = str(uuid.uuid4())
        target = next(self._targets)
        if self._count % 3:
            content = {"tenant": self.tenant_id, "number": self._count, "note": "ä€" * 40}
            body, content_type = json.dumps(content).encode(), "application/json"
            digest = digest_of_json(content)
        else:
            body = f"{self.tenant_id}-{self._count}-{identity}\x00\xff".encode()
            content_type, digest = "text/plain", digest_of_bytes(body)
        self.sent.add(identity)
        entry = Entry(target=target, content_type=content_type, digest=digest)
        return _Message(identity, body, entry)

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        for tag in tags:
            message = self._unconfirmed.pop(tag)
            if isinstance(method, pika.spec.Basic.Ack):
                self.confirmed[message.id] = message.entry
            else:
                self._again.append(message)
        self._more()


@dataclass(slots=True, kw_only=True)
class Ledger:
    """All clients of a test. `check` compares what they were promised with what is stored."""

    database_url: str = field(repr=False)
    clients: list[Client] = field(default_factory=list)

    @contextmanager
    def publishing(
        self,
        tenants: Iterable[tuple[str, str]],
        targets: Sequence[Target] = (DEFAULT,),
        *,
        rate: float = 1500,
        window: int = WINDOW,
    ) -> Iterator[list[Client]]:
        """Publish for tenants, given as id and AMQP URL; at the end, wait for all confirms."""
        clients = [
            Client(tenant_id, url, targets, rate=rate, window=window) for tenant_id, url in tenants
        ]
        self.clients += clients
        try:
            for client in clients:
                client.start()
            yield clients
            for client in clients:
                if not client.abandoned:
                    client.finish()
        finally:
            for client in clients:
                client.abandon()

    @property
    def confirmed(self) -> int:
        return sum(len(client.confirmed) for client in self.clients)

    def wait_confirmed(self, more: int = 1, *, timeout: float = 10.0) -> None:
        """Wait until every client that still publishes has `more` confirms than now."""
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

    def check(self, *, timeout: float = 15.0, alive: Callable[[], object] = lambda: None) -> None:
        """Every confirmed message is stored once, unchanged, in its place; nothing else is."""

        def complete() -> bool:
            alive()
            return self.stored() >= self.confirmed

        eventually(complete, timeout=timeout, what=f"{self.confirmed} rows, one a confirm")
        expected = {
            (client.tenant_id, identity): entry
            for client in self.clients
            for identity, entry in client.confirmed.items()
        }
        with psycopg.connect(self.database_url) as connection:
            rows = connection.execute(
                "SELECT tenant_id, id, topic, partition, payload, body, content_type, position,"
                " tableoid::regclass::text FROM public.messages ORDER BY tenant_id, position"
            ).fetchall()
        found = {(row[0], row[1]): row for row in rows}
        assert len(found) == len(rows)
        missing = expected.keys() - found.keys()
        assert not missing, f"{len(missing)} confirmed and not stored: {sorted(missing)[:3]}"
        extra = found.keys() - expected.keys()
        assert not extra, f"{len(extra)} stored and never sent: {sorted(extra)[:3]}"
        owners: dict[str, str] = {}
        for key, entry in expected.items():
            tenant_id, _, topic, partition, payload, body, content_type, _, table = found[key]
            digest = digest_of_json(payload) if body is None else digest_of_bytes(body)
            assert (topic, partition) == (entry.target.topic, entry.target.partition), key
            assert (content_type, digest) == (entry.content_type, entry.digest), key
            assert owners.setdefault(table, tenant_id) == tenant_id, table
        positions = [(row[0], row[7]) for row in rows]
        assert len(set(positions)) == len(positions)


def digest_of_json(content: object) -> str:
    """Digest what a JSON document says, not how it is written: `jsonb` writes it anew."""
    return digest_of_bytes(json.dumps(content, sort_keys=True).encode())


def digest_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
