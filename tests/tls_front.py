"""TLS before a server that has none; its certificate and what it asks of clients are the test's."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

PIECE = 65536
LOOK_EVERY = 0.1


@contextmanager
def tls_front(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Give a port of 127.0.0.1 that speaks TLS and passes on to another, which does not."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def accept(listening: socket.socket) -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                client, _ = listening.accept()
                thread = threading.Thread(target=serve, args=(client,))
                thread.start()
                threads.append(thread)

    def serve(client: socket.socket) -> None:
        # A handshake that fails is what some tests are about.
        with suppress(OSError), ExitStack() as stack:
            stack.enter_context(client)
            client.settimeout(10)
            ahead = stack.enter_context(context.wrap_socket(client, server_side=True))
            behind = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            while not ended.is_set() and _pass_on(ahead, behind):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(LOOK_EVERY)
        threads.append(threading.Thread(target=accept, args=(listening,)))
        threads[0].start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            for thread in threads:
                thread.join(30)


@contextmanager
def behind_tls(url: str, scheme: str, context: ssl.SSLContext) -> Iterator[str]:
    """Give a URL by which a server that has no TLS is reached by it."""
    parts = urlsplit(url)
    assert parts.port is not None
    with tls_front(parts.port, context) as port:
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        yield urlunsplit(parts._replace(scheme=scheme, netloc=netloc))


def _pass_on(ahead: ssl.SSLSocket, behind: socket.socket) -> bool:
    """Pass on what has come on either side, if anything; False once one has ended."""
    ready = [ahead] if ahead.pending() else select.select([ahead, behind], [], [], LOOK_EVERY)[0]
    for one, other in ((ahead, behind), (behind, ahead)):
        if one in ready:
            data = one.recv(PIECE)
            if not data:
                return False
            other.sendall(data)
    return True
