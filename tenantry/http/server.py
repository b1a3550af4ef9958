"""Serves the API on the control socket and on TCP: one application, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.http.auth import RELAYED_PEER, Connection, Listener, mark
from tenantry.http.listeners import (
    ControlSocket,
    Handshakes,
    ListenError,
    Relay,
    SharedRelay,
    Shedding,
    bind_tcp,
    tls_context,
)
from tenantry.http.protocol import HANG_UP_KEY, PEER_KEY, bounded_h11
from tenantry.loops import Heartbeat

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

MAX_CONNECTIONS: Final = 2048
"""The most connections of a listener; the server's maker sets how many the process can have."""

KEEP_ALIVE_SECONDS: Final = 30
GRACE_SECONDS: Final = 5
HANDSHAKE_SECONDS: Final = 10.0
BEAT_SECONDS: Final = 1.0
_MARGIN_SECONDS: Final = 5.0


class ApiServer:
    """Listens and serves. Made on any thread; `run` blocks the thread that owns it.

    With `tls`, the files of a certificate and its key, TCP is served as HTTPS. `listening` is a
    bound TCP socket; `shared_control` is a control socket that other processes serve as well, and
    that stays when this server ends. Through `relay` a front passes TCP connections on; the server
    closes it at its end.

    `bind` takes the addresses; if one can't be had it raises `ListenError`, and takes none.
    `stop` may come from any thread, at any time, more than once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        socket_path: Path | None = None,
        relay: Relay | SharedRelay | None = None,
        shared_control: socket.socket | None = None,
        tcp: tuple[str, int] | None = None,
        listening: socket.socket | None = None,
        tls: tuple[Path, Path] | None = None,
        max_connections: int = MAX_CONNECTIONS,
        grace: int = GRACE_SECONDS,
    ) -> None:
        self.heartbeat: Final = Heartbeat()
        self._app = app
        self._socket_path = socket_path
        self._relay = relay
        self._shared_control = shared_control
        self._tcp_address = tcp
        self._tls_files = tls
        self._tls: ssl.SSLContext | None = None
        self._max_connections = min(max_connections, MAX_CONNECTIONS)
        self._grace = grace
        self._control: ControlSocket | None = None
        self._tcp = listening
        self._port: int | None = None
        self._guard = threading.Lock()
        self._bound = self._running = self._stopping = self._sharing = False
        self._share_now: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._started = threading.Event()
        self._ended = threading.Event()

    @property
    def tcp_port(self) -> int | None:
        """The port TCP is served on, once bound."""
        return self._port

    def bind(self) -> None:
        """Take the addresses; clients may connect and wait from now on. Idempotent."""
        with self._guard:
            if self._bound or self._stopping:
                return
            try:
                if self._tls_files is not None:
                    self._tls = tls_context(*self._tls_files)
                if self._socket_path is not None:
                    self._control = ControlSocket(self._socket_path)
                if self._tcp_address is not None:
                    self._tcp = bind_tcp(*self._tcp_address)
                if self._tcp is not None:
                    self._port = self._tcp.getsockname()[1]
            except ListenError:
                self._release()
                raise
            self._bound = True

    def run(self) -> None:
        """Serve until `stop`; bind first if that was not done. Installs no signal handlers."""
        self.bind()
        with self._guard:
            if self._stopping or self._running:
                return
            self._running = True
        try:
            _run(self._serve())
        finally:
            with self._guard:
                self._loop = None
                self._release()
            self._started.set()
            self._ended.set()

    def wait_started(self, timeout: float) -> bool:
        """Wait until the server answers; false if that takes longer than `timeout` seconds."""
        return self._started.wait(timeout)

    def stop(self, timeout: float | None = None) -> bool:
        """Stop listening, let requests end, cut off those that take too long, remove the socket.

        Waits for the end for at most `timeout` seconds (by default the grace and a little more; 0
        does not wait), and tells whether the server has ended.
        """
        with self._guard:
            self._stopping = True
            loop = self._loop
            if not self._running:
                self._release()
                self._ended.set()
            elif loop is not None and self._closing is not None:
                loop.call_soon_threadsafe(self._closing.set)
        return self._ended.wait(self._grace + _MARGIN_SECONDS if timeout is None else timeout)

    def share(self) -> None:
        """Serve the shared sockets from now on; a second call does nothing."""
        with self._guard:
            self._sharing = True
            if self._loop is not None and self._share_now is not None:
                self._loop.call_soon_threadsafe(self._share_now.set)

    async def _serve_later(
        self, closing: asyncio.Event, server: _Server, bound: socket.socket
    ) -> None:
        assert self._share_now is not None  # noqa: S101 - made with the loop
        waits = [asyncio.create_task(one.wait()) for one in (self._share_now, closing)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not closing.is_set():
            await server.serve([bound])

    def call(self, act: Callable[[], None]) -> None:
        """Call a function soon on the event loop, if there is one."""
        with self._guard:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(act)

    async def _serve(self) -> None:
        closing = asyncio.Event()
        servers: list[tuple[_Server, socket.socket]] = []
        if self._control is not None:
            servers.append(
                (self._server(Listener.CONTROL, closing), Shedding(self._control.socket))
            )
        # Shared sockets are served once this process is ready: `share` tells when.
        later: list[tuple[_Server, socket.socket]] = []
        if self._shared_control is not None:
            shared = Shedding(self._shared_control)
            later.append((self._server(Listener.CONTROL, closing), shared))
        if self._relay is not None:
            relayed = self._server(Listener.TCP, closing, relayed=True)
            (servers if later == [] else later).append((relayed, self._relay.near))
        if self._tcp is not None:
            handshakes = None if self._tls is None else Handshakes(self._max_connections // 4 or 1)
            servers.append(
                (
                    self._server(Listener.TCP, closing, handshakes=handshakes),
                    Shedding(self._tcp, handshakes),
                )
            )
        with self._guard:
            self._loop, self._closing = asyncio.get_running_loop(), closing
            self._share_now = asyncio.Event()
            if self._sharing:
                self._share_now.set()
            if self._stopping:  # `stop` was called before there was a loop
                return
        tasks = [asyncio.create_task(server.serve([bound])) for server, bound in servers]
        tasks += [
            asyncio.create_task(self._serve_later(closing, server, bound))
            for server, bound in later
        ]
        where = {"control": self._socket_path and str(self._socket_path), "tcp_port": self._port}
        _log.info("api.serving", **{key: value for key, value in where.items() if value})
        ended = asyncio.create_task(closing.wait())
        waits: list[asyncio.Task[Any]] = [
            ended,
            asyncio.create_task(_beat(self.heartbeat)),
            asyncio.create_task(_all_listening([server for server, _ in servers])),
        ]
        try:
            await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
            self._started.set()
            # If one listener ends by itself, the server ends: serving half of it is of no use.
            await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.set()
            for server, _ in (*servers, *later):
                server.should_exit = True
            await asyncio.gather(*tasks)
            for wait in waits:
                wait.cancel()

    def _server(
        self,
        listener: Listener,
        closing: asyncio.Event,
        *,
        relayed: bool = False,
        handshakes: Handshakes | None = None,
    ) -> _Server:
        config = uvicorn.Config(
            _MarkedApp(self._app, listener, closing, relayed=relayed),
            interface="asgi3",
            http=bounded_h11(self._max_connections, handshakes),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            # Clients must not be able to fill the log with bytes that are no HTTP.
            log_level="error",
            access_log=False,
            # A proxy's headers would let any client name its own address.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=self._grace,
        )
        config.load()
        if listener is Listener.TCP and not relayed:
            config.ssl = self._tls
        return _Server(config)

    def _release(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._shared_control is not None:
            self._shared_control.close()
        if self._relay is not None:
            self._relay.close()
        if self._tcp is not None:
            self._tcp.close()


class _EventLoop(asyncio.SelectorEventLoop):
    """A loop that bounds TLS handshakes in time: uvicorn sees connections only after them."""

    async def create_server(self, *arguments: Any, **keywords: Any) -> asyncio.Server:
        """Begin to listen."""
        if keywords.get("ssl") is not None:
            keywords["ssl_handshake_timeout"] = HANDSHAKE_SECONDS
        return await super().create_server(*arguments, **keywords)


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on a new loop. `asyncio.run` would handle SIGINT, if this were the main thread."""
    loop = _EventLoop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_cancel_others())
        loop.run_until_complete(loop.shutdown_asyncgens())
        # Transports closed last are released in the loop's next iteration.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process, and tells when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


async def _beat(heartbeat: Heartbeat) -> None:
    while True:
        heartbeat.beat()
        await asyncio.sleep(BEAT_SECONDS)


async def _all_listening(servers: list[_Server]) -> None:
    for server in servers:
        await server.listening.wait()


class _MarkedApp:
    """Marks requests with their listener, and passes HEAD on as GET."""

    def __init__(
        self, app: ASGIApp, listener: Listener, closing: asyncio.Event, *, relayed: bool
    ) -> None:
        self._app = app
        self._listener = listener
        self._closing = closing
        self._relayed = relayed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        peer = str(state.get(PEER_KEY, "unknown"))
        if self._relayed:
            peer = dict(scope["headers"]).get(RELAYED_PEER, b"unknown").decode("latin-1")
        scope, send = as_get(scope, send)
        connection = Connection(
            listener=self._listener,
            peer=peer,
            closing=self._closing,
            hang_up=state.get(HANG_UP_KEY),
        )
        mark(scope, connection)
        await self._app(scope, receive, send)


def as_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Turn HEAD into a GET whose answer is sent without its body; leave other requests as they are.

    The answer of a stream ends after its head.
    """
    if scope["type"] != "http" or scope["method"] != "HEAD":
        return scope, send
    ended = False

    async def keep_back(message: Message) -> None:
        nonlocal ended
        if ended:
            return
        if message["type"] == "http.response.start":
            await send(message)
            names = {name.lower() for name, _ in message.get("headers", ())}
            ended = b"content-length" not in names
        else:
            ended = not message.get("more_body", False)
        if ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return {**scope, "method": "GET"}, keep_back
