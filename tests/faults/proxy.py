"""A TCP proxy between the daemon and a service, which can cut or freeze its connections."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Self, TypeAlias

PIECE = 65_536

Address: TypeAlias = tuple[str, int] | str


class Link:
    """A connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.deaf = False
        """Whether the client is sent nothing more."""
        self._open_ways = 2
        self._lock = threading.Lock()

    def way_ended(self) -> bool:
        """Record the end of one direction; after the second, close both ends and return True."""
        with self._lock:
            self._open_ways -= 1
            if self._open_ways:
                return False
        self.client.close()
        self.server.close()
        return True

    def cut(self) -> None:
        """Reset both sides, as a broken network does; bytes on their way are lost."""
        for end in (self.client, self.server):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


Watch: TypeAlias = Callable[[Link, bytes], bool]
"""Is called with a client's bytes before the server gets them; False withholds them."""

Heard: TypeAlias = Callable[[Link, bytes], bool]
"""Is called with a server's answer before the client gets it; False withholds it."""


class Proxy:
    """Listens on a port of its own and carries bytes to one address and back."""

    def __init__(
        self, target: Address, *, watch: Callable[[Link], tuple[Watch, Heard]] | None = None
    ) -> None:
        self._target = target
        self._watch = watch
        self._flowing = threading.Event()
        self._flowing.set()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._flowing.set()
        self._listener.close()
        self.cut_all()

    def freeze(self) -> None:
        """Carry nothing more, and close nothing: the worst that a network does."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def cut_all(self) -> int:
        """Cut every connection; return how many there were."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            link = Link(client, server)
            with self._lock:
                self._links.add(link)
            up, down = (lambda *_: True, lambda *_: True) if not self._watch else self._watch(link)
            for source, sink, sees in ((client, server, up), (server, client, down)):
                threading.Thread(
                    target=self._pump, args=(link, source, sink, sees), daemon=True
                ).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, str):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            return server
        server = socket.create_connection(self._target, timeout=5)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _pump(self, link: Link, source: socket.socket, sink: socket.socket, sees: Watch) -> None:
        try:
            while data := source.recv(PIECE):
                self._flowing.wait()
                if sees(link, data):
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            link.cut()
        if link.way_ended():
            with self._lock:
                self._links.discard(link)
