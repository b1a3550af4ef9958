"""A pooler before PostgreSQL, as far as a session's life goes: by session, or by transaction."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from tests.services_postgres import admin_url
from tests.waiting import DEADLINE

OPTIONS_REFUSED = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
FAKE_KEY = struct.pack("!ii", 2_000_000_000, 1)
"""A pooler's own number of a connection, which is no process of the server's."""


@dataclass
class Pooler:
    """What the pooler does; may be changed while it runs, for those who connect then."""

    database: str
    port: int = 0
    by_transaction: bool = False
    takes_options: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock)
    shared: socket.socket | None = None
    greeting: bytes = b""

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(self.database)}"


def _frame(connection: socket.socket) -> tuple[bytes, bytes]:
    head = _exactly(connection, 5)
    return head[:1], head + _exactly(connection, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise ConnectionError("closed")
    return data


class _Guest(socketserver.BaseRequestHandler):
    """One client of the pooler."""

    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            startup = self._startup()
            pooler = self.server.pooler
            if b"options\0" in startup and not pooler.takes_options:
                self._send(b"E", OPTIONS_REFUSED)
            elif pooler.by_transaction:
                self._by_transaction(startup)
            else:
                with self._enter(startup) as backend:
                    self._greet(backend)
                    self._by_session(backend)

    def _startup(self) -> bytes:
        while True:
            (size,) = struct.unpack("!i", head := _exactly(self.request, 4))
            body = _exactly(self.request, size - 4)
            if body[:4] == struct.pack("!i", 196608):
                return head + body
            self.request.sendall(b"N")  # neither TLS nor GSSAPI

    def _enter(self, startup: bytes) -> socket.socket:
        backend = socket.socket(socket.AF_UNIX)
        backend.settimeout(DEADLINE)
        backend.connect(f"{conninfo_to_dict(admin_url())['host']}/.s.PGSQL.5432")
        backend.sendall(startup)
        return backend

    def _greet(self, backend: socket.socket) -> bytes:
        greeting = b""
        while True:
            kind, frame = _frame(backend)
            greeting += frame if kind != b"K" else b"K" + struct.pack("!i", 12) + FAKE_KEY
            if kind in b"ZE":
                self.request.sendall(greeting)
                return greeting

    def _by_session(self, backend: socket.socket) -> None:
        answers = threading.Thread(target=_pass_on, args=(backend, self.request))
        answers.start()
        _pass_on(self.request, backend)
        answers.join(DEADLINE)

    def _by_transaction(self, startup: bytes) -> None:
        pooler = self.server.pooler
        with pooler.turn:
            if pooler.shared is None:
                pooler.shared = self._enter(startup)
                pooler.greeting = self._greet(pooler.shared)
            else:
                self.request.sendall(pooler.greeting)
        backend, idle = pooler.shared, True
        try:
            while True:
                kind, frame = _frame(self.request)
                if kind == b"X":
                    return
                if idle:
                    pooler.turn.acquire()
                    idle = False
                backend.sendall(frame)
                while kind in b"QS" and not idle:
                    answer, told = _frame(backend)
                    self.request.sendall(told)
                    if answer == b"Z":
                        if told[5:] == b"I":
                            pooler.turn.release()
                            idle = True
                        break
        finally:
            if not idle:
                pooler.turn.release()

    def _send(self, kind: bytes, body: bytes) -> None:
        self.request.sendall(kind + struct.pack("!i", len(body) + 4) + body)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, pooler: Pooler) -> None:
        super().__init__(("127.0.0.1", 0), _Guest)
        self.pooler = pooler


@contextmanager
def pooling(database: str) -> Iterator[Pooler]:
    """Run a pooler before a database of the run's server."""
    pooler = Pooler(database)
    with _Server(pooler) as server:
        pooler.port = server.server_address[1]
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield pooler
        finally:
            server.shutdown()
            serving.join(DEADLINE)
            if pooler.shared is not None:
                pooler.shared.close()
