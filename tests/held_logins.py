"""Clients that have proved who they are, and keep back the last word of their login for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

import pika
import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.faults.proxy import Address, Link, Proxy
from tests.waiting import DEADLINE

T = TypeVar("T")

CONNECTION_OPEN: Final = b"\x00\x0a\x00\x28"
"""AMQP's class and method of the word after which a connection is open."""

SCRAM_PROOF: Final = b",p="
"""What the last word of a client's login to PostgreSQL has in it."""


class HeldLogin(Generic[T]):
    """A login that waits with its last word."""

    def __init__(self, word: bytes) -> None:
        self._word = word
        self._reached = threading.Event()
        self._goes_on = threading.Event()
        self.outcome: Callable[[], T]

    def wait(self) -> None:
        """Wait until nothing but the last word is missing."""
        assert self._reached.wait(DEADLINE), "the client has not come to its last word"

    def go_on(self) -> T:
        """Say the last word, and give the session."""
        self._goes_on.set()
        return self.outcome()

    def release(self) -> None:
        """Keep nothing back any more."""
        self._goes_on.set()

    def sees(self, _: Link, data: bytes) -> bool:
        """Let pass what a client says, but for the last word."""
        if self._word in data:
            self._reached.set()
            self._goes_on.wait()
        return True


@contextmanager
def held_login(server: Address, word: bytes, login: Callable[[int], T]) -> Iterator[HeldLogin[T]]:
    """Have `login` connect by the port it is given, and come to its last word."""
    held = HeldLogin[T](word)
    with (
        ThreadPoolExecutor(1) as pool,
        Proxy(server, watch=lambda _: (held.sees, lambda *_: True)) as proxy,
    ):
        future = pool.submit(login, proxy.port)
        held.outcome = lambda: future.result(DEADLINE)
        try:
            held.wait()
            yield held
        finally:
            held.release()


@contextmanager
def held_role(url: str) -> Iterator[HeldLogin[psycopg.Connection]]:
    """Have a role log in to PostgreSQL, and come to its last word."""
    given = conninfo_to_dict(url)
    host, port = str(given["host"]), int(given.get("port") or 5432)

    def login(through: int) -> psycopg.Connection:
        plain = f"host=127.0.0.1 port={through} sslmode=disable gssencmode=disable"
        return psycopg.connect(url, autocommit=True, **conninfo_to_dict(plain))  # type: ignore[arg-type]

    server = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
    with held_login(server, SCRAM_PROOF, login) as held:
        yield held


@contextmanager
def held_client(url: str) -> Iterator[HeldLogin[pika.BlockingConnection]]:
    """Have a client log in to RabbitMQ, and come to its last word."""
    parts = urlsplit(url)

    def login(through: int) -> pika.BlockingConnection:
        wanted = pika.URLParameters(url)
        wanted.host, wanted.port = "127.0.0.1", through
        wanted.stack_timeout = wanted.blocked_connection_timeout = DEADLINE
        return pika.BlockingConnection(wanted)

    server = (parts.hostname or "", parts.port or 5672)
    with held_login(server, CONNECTION_OPEN, login) as held:
        yield held
