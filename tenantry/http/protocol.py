"""The HTTP protocol of both listeners: uvicorn's, bounded in time, with the peer's credentials."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import Any, ClassVar, Final

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from tenantry.http.listeners import HURRY_SECONDS, Handshakes
from tenantry.http.problems import MEDIA_TYPE, Problem

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

HEAD_SECONDS: Final = 10.0
"""Seconds in which the head of a request must arrive in whole."""

HEADLESS_OF_A_CLIENT: Final = 64
"""Connections of one address without a whole head for more than `HURRY_SECONDS`. A proxy, which
carries many clients, opens connections only to send requests.
"""

REST_SECONDS: Final = 5.0
REST_BYTES: Final = 4 * 1024 * 1024
"""Bytes of a body that a client may send after the answer: many clients read it only then."""

WRITE_SECONDS: Final = 20.0
"""Seconds a client may leave its answer unread: some 50 KB, beside the kernel's buffers."""

PEER_KEY: Final = "tenantry.peer"
HANG_UP_KEY: Final = "tenantry.hang_up"
_CREDENTIALS: Final = struct.Struct("3i")


class BoundedH11(H11Protocol):
    """An HTTP/1.1 connection whose client has some seconds to send a request, and to read.

    It puts the peer, and a function that ends the connection, into every request's state, which no
    header can reach.
    """

    most_connections: ClassVar[int]
    headless: ClassVar[dict[str, dict[BoundedH11, float]]]
    handshakes: ClassVar[Handshakes | None]
    told: ClassVar[bool] = False
    _peer_address = ""
    _headless = True
    _head_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None
    _rest = 0
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, or end it at once if there are too many."""
        super().connection_made(transport)
        if self.handshakes is not None:
            self.handshakes.end(transport.get_extra_info("socket").fileno())
        self._peer_address = peer_of(transport).partition(" ")[0]
        if len(self.connections) > self.most_connections:
            self._tell_once()
            if not self._makes_room():
                transport.abort()
                return
        self._end_oldest_headless()
        own = {PEER_KEY: peer_of(transport), HANG_UP_KEY: transport.abort}
        self.app_state = {**self.app_state, **own}
        self._expect_head()

    def _makes_room(self) -> bool:
        """End an idle connection of the client that has most; tell whether there was one.

        So no client takes the others' places by opening connections and keeping them idle.
        """
        others = [one for one in self.connections if isinstance(one, BoundedH11)]
        counts = Counter(one._peer_address for one in others)  # noqa: SLF001 - of its own kind
        most, count = counts.most_common(1)[0]
        if counts[self._peer_address] == count:
            return False
        for one in others:
            if one._peer_address == most and one.conn.their_state is h11.IDLE:  # noqa: SLF001
                one.transport.abort()
                # The protocol hears of its end later; its place is free now.
                self.connections.discard(one)
                return True
        return False

    def _end_oldest_headless(self) -> None:
        """End the client's oldest connections without a request, if it has too many of them."""
        connected = self.transport.get_extra_info("socket")
        if connected is None or connected.family == socket.AF_UNIX:
            return
        now = self.loop.time()
        waiting = self.headless.setdefault(self._peer_address, {})
        waiting[self] = now
        while len(waiting) > HEADLESS_OF_A_CLIENT:
            oldest, since = next(iter(waiting.items()))
            if now - since < HURRY_SECONDS:
                break
            del waiting[oldest]
            oldest.transport.abort()

    def _head_has_come(self) -> None:
        self._headless = False
        waiting = self.headless.get(self._peer_address)
        if waiting is not None:
            waiting.pop(self, None)
            if not waiting:
                del self.headless[self._peer_address]

    def _tell_once(self) -> None:
        kind = type(self)
        if not kind.told:
            kind.told = True
            _log.warning(
                "api.too_many_connections",
                most=self.most_connections,
                remedy="more are turned away; it is the limit of open files (LimitNOFILE=) "
                "that decides, up to 2048",
            )

    def data_received(self, data: bytes) -> None:
        """Receive bytes; the timer runs until they make a whole head of a request."""
        super().data_received(data)
        if self._rest_timer is not None:
            self._take_rest(len(data))
        if self.conn.their_state is not h11.IDLE:
            if self._headless:
                self._head_has_come()
            self._drop_timer()
        elif self._head_timer is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._head_has_come()
        self._drop_rest_timer()
        self._drop_timer()
        self._drop_write_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Go on to the next request; the rest of this one's body has little time."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._rest = 0
            self._rest_timer = self.loop.call_later(REST_SECONDS, self.transport.close)

    def _take_rest(self, size: int) -> None:
        self._rest += size
        if self.conn.their_state is not h11.SEND_BODY:
            self._drop_rest_timer()
        elif self._rest > REST_BYTES:
            self.transport.close()

    def _drop_rest_timer(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def pause_writing(self) -> None:
        """Note that the client has stopped reading."""
        super().pause_writing()
        self._drop_write_timer()
        # Closing would wait until everything has been read, and so for ever.
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        self._drop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP with a problem document, as any other error."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # an answer has begun: no other can be sent
            return
        body = Problem(400, msg).body()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _drop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def bounded_h11(most_connections: int, handshakes: Handshakes | None = None) -> type[BoundedH11]:
    """Make the protocol class of a listener with a limit of connections.

    With `handshakes`, a connection gets this far once its TLS handshake is done.
    """
    own = {"most_connections": most_connections, "headless": {}, "handshakes": handshakes}
    return type("BoundedH11", (BoundedH11,), own)


def peer_of(transport: Any) -> str:
    """Name the peer: `uid=0 pid=4711` on a Unix socket, else its address."""
    connected = transport.get_extra_info("socket")
    if connected is not None and connected.family == socket.AF_UNIX:
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None:  # not Linux: the file's mode has decided, and the peer has no name
            return "control socket"
        raw = connected.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return f"uid={uid} pid={pid}"
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) and address else "unknown"
