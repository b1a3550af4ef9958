"""Deliveries read straight off the wire: the hottest path of the daemon.

pika builds five objects a message and looks each of its frames up in a table of callbacks; on that
path it takes most of the daemon's processor time. Here the three frames of a delivery (method,
header, body; AMQP 0-9-1, chapter 4.2) become one `Delivery`, and only what is stored is read.
Everything else the broker sends is pika's business as before.

This leans on three of pika's private names, `_on_data_available`, `_frame_buffer` and
`_output_marshaled_frames`; a differential test against pika's own reading and writing holds it to
them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from pika import frame as pika_frame
from pika.exceptions import InvalidFrameError

from tenantry.broker.port import Delivery
from tenantry.broker.rabbitmq.tables import MalformedTableError, read_entries, read_table
from tenantry.broker.rabbitmq.term_fence import FencedConnection
from tenantry.messages.encoding import LAST_MS
from tenantry.messages.headers import (
    CONTENT_ENCODING,
    CORRELATION_ID,
    MOST_BYTES,
    REPLAY_HEADER,
    REPLAYS_HEADER,
    UnfitHeaders,
)
from tenantry.messages.port import Incoming
from tenantry.messages.validation import UNREADABLE, too_large

Receiver: TypeAlias = tuple[str, int, Callable[[Delivery], None], "Gate | None"]
"""A consumer's topic, its partition, who takes its deliveries, and who says which are taken."""

_METHOD: Final = 1
_HEADER: Final = 2
_BODY: Final = 3
_END: Final = 0xCE
_OVERHEAD: Final = 8
"""Bytes of a frame that are not its payload: type, channel, size; and the end mark."""

_REPLAY_MARKS: Final = (REPLAY_HEADER.encode(), REPLAYS_HEADER.encode())

_DELIVER: Final = b"\x00\x3c\x00\x3c"
"""Class 60, method 60."""

_frame: Final = struct.Struct(">BHI").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_u64: Final = struct.Struct(">Q").unpack_from
_content: Final = struct.Struct(">HHQH").unpack_from

# Which properties follow in a content header, in this order (AMQP 0-9-1, the class basic).
_CONTENT_TYPE: Final = 1 << 15
_CONTENT_ENCODING: Final = 1 << 14
_HEADERS: Final = 1 << 13
_DELIVERY_MODE: Final = 1 << 12
_PRIORITY: Final = 1 << 11
_CORRELATION_ID: Final = 1 << 10
_SKIPPED_TEXTS: Final = (_CORRELATION_ID, 1 << 9, 1 << 8)
"""Correlation id, reply-to, expiration."""
_KEPT: Final = _CONTENT_ENCODING | _CORRELATION_ID
_MESSAGE_ID: Final = 1 << 7
_TIMESTAMP: Final = 1 << 6

LARGEST_READ: Final = 64 * 1024
"""Bytes taken from the socket at once. Each read gives up the interpreter's lock and has to wait
for it again; pika's 4 KiB would do so every dozen messages."""


class Gate(Protocol):
    """Says of each delivery, before its body is read, whether it is kept."""

    def admit(self, body: int, table: int) -> bool:
        """Hear of the next delivery of a channel, and the bytes of its body and its headers."""

    def dropped(self, tag: int) -> None:
        """Hear that a delivery that was not admitted has passed."""


_ACK: Final = struct.Struct(">BHIHHQBB").pack
"""A whole frame: method, channel, size; class 60, method 80, delivery tag, not multiple; end."""
_NACK: Final = _ACK
"""The same but for the method, 120, and its bits: not multiple, back to the queue."""


class _Partial:
    """A delivery of which not all frames have come."""

    __slots__ = (
        "body",
        "content_type",
        "dropped",
        "headers",
        "message_id",
        "missing",
        "published",
        "receiver",
        "redelivered",
        "tag",
    )

    def __init__(self, receiver: Receiver | None, tag: int, redelivered: bool) -> None:
        self.receiver = receiver
        self.tag = tag
        self.redelivered = redelivered
        self.missing = 0
        self.dropped = False
        self.body: list[bytes] = []
        self.content_type: str | None = None
        self.headers: Mapping[str, object] | None = None
        self.message_id: str | None = None
        self.published: int | None = None


class ReadingConnection(FencedConnection):
    """A connection that gives deliveries to receivers, past pika's channels."""

    largest_table = MOST_BYTES
    """Bytes of headers that are read; of larger ones only what a replay is known by."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._receivers: dict[tuple[int, bytes], Receiver] = {}
        self._partial: dict[int, _Partial] = {}
        self._content_types: dict[bytes, str] = {}
        self.settled_at = 0.0
        super().__init__(*arguments, **keywords)

    def receive(self, channel: int, consumer_tag: str, receiver: Receiver) -> None:
        """Give the deliveries of a consumer to `receiver`; call it before consuming."""
        self._receivers[channel, consumer_tag.encode()] = receiver

    def forget(self, channel: int) -> None:
        """Drop what still comes on a channel that is being closed."""
        partial = self._partial.get(channel)
        if partial is not None:
            # What is left of it is ours to read all the same: pika has not seen its beginning.
            partial.receiver, partial.dropped = None, True
            partial.body.clear()
        for key in [key for key in self._receivers if key[0] == channel]:
            del self._receivers[key]

    def ack_each(self, channel: int, tags: Sequence[int]) -> None:
        """Ack deliveries one by one; for many that is a tenth of what pika's way takes."""
        self._output_marshaled_frames([_acks(channel, tags)])

    def give_back(self, channel: int, tags: Sequence[int]) -> None:
        """Give deliveries back to their queues, one by one."""
        self._output_marshaled_frames([_nacks(channel, tags)])

    def read_in_large_pieces(self) -> None:
        """Take more from the socket at once than pika does; call it when the connection is open."""
        transport = getattr(self, "_transport", None)
        if transport is not None and hasattr(transport, "_MAX_RECV_BYTES"):
            transport._MAX_RECV_BYTES = LARGEST_READ  # noqa: SLF001

    def _on_data_available(self, data_in: bytes) -> None:
        if not self.is_open:
            super()._on_data_available(data_in)
            return
        # All that comes is a sign of life, a part of a large body on a slow line as well.
        self.bytes_received += len(data_in)
        data = self._frame_buffer + data_in if self._frame_buffer else data_in
        self._frame_buffer = b""
        size = len(data)
        offset = 0
        partial = self._partial
        while size - offset >= _OVERHEAD:
            kind, channel, length = _frame(data, offset)
            start = offset + 7
            stop = start + length
            if stop >= size:
                break
            if data[stop] != _END:
                raise InvalidFrameError("Invalid FRAME_END marker")
            if kind == _BODY and channel in partial:
                self._body(channel, data[start:stop])
            elif kind == _HEADER and channel in partial:
                self._header(channel, data, start, stop)
            elif kind == _METHOD and data[start : start + 4] == _DELIVER:
                self._deliver(channel, data, start + 4)
            else:
                _, frame = pika_frame.decode_frame(data[offset : stop + 1])
                if frame is not None:
                    self._process_frame(frame)
            offset = stop + 1
        self._frame_buffer = data[offset:] if offset else data

    def _deliver(self, channel: int, data: bytes, at: int) -> None:
        """Begin a delivery: consumer tag, delivery tag, redelivered; the rest is known."""
        end = at + 1 + data[at]
        self._partial[channel] = _Partial(
            self._receivers.get((channel, data[at + 1 : end])),
            _u64(data, end)[0],
            data[end + 8] & 1 == 1,
        )

    def _header(self, channel: int, data: bytes, at: int, stop: int) -> None:
        """Read the properties that are kept, and ask whether the delivery is."""
        partial = self._partial[channel]
        _, _, missing, flags = _content(data, at)
        partial.missing = missing
        table = 0
        try:
            at += 14
            if flags & _CONTENT_TYPE:
                end = at + 1 + data[at]
                partial.content_type = self._content_type(data[at + 1 : end])
                at = end
            encoding = at
            if flags & _CONTENT_ENCODING:
                at += 1 + data[at]
            if flags & _HEADERS:
                table = _u32(data, at)[0]
                if table <= self.largest_table:
                    partial.headers, at = _table(data, at, stop)
                else:
                    partial.headers, at = _large_table(data, at, table)
            if flags & _DELIVERY_MODE:
                at += 1
            if flags & _PRIORITY:
                at += 1
            correlation = at
            for text in _SKIPPED_TEXTS:
                if flags & text:
                    at += 1 + data[at]
            if flags & _MESSAGE_ID:
                end = at + 1 + data[at]
                # An empty id is none.
                if end > at + 1:
                    partial.message_id = data[at + 1 : end].decode("utf-8", "backslashreplace")
                at = end
            if flags & _TIMESTAMP:
                partial.published = _u64(data, at)[0] * 1000
            if flags & _KEPT:
                partial.headers = _with_properties(
                    partial.headers,
                    encoding=_short(data, encoding) if flags & _CONTENT_ENCODING else "",
                    correlation=_short(data, correlation) if flags & _CORRELATION_ID else "",
                )
        except Exception as error:  # noqa: BLE001 - whatever one message does, it does alone
            partial.headers = UnfitHeaders({}, (UNREADABLE, f"its properties: {error}"[:500]))
        receiver = partial.receiver
        if receiver is not None and (gate := receiver[3]) is not None:
            partial.dropped = not gate.admit(missing, table)
        if not missing:
            self._done(channel, b"")

    def _body(self, channel: int, piece: bytes) -> None:
        partial = self._partial[channel]
        if partial.dropped:
            partial.missing -= len(piece)
            if partial.missing <= 0:
                self._done(channel, b"")
            return
        if not partial.body and len(piece) == partial.missing:
            self._done(channel, piece)
            return
        partial.body.append(piece)
        partial.missing -= len(piece)
        if partial.missing <= 0:
            self._done(channel, b"".join(partial.body))

    def _done(self, channel: int, body: bytes) -> None:
        partial = self._partial.pop(channel)
        receiver = partial.receiver
        if receiver is None:
            # Its channel is being closed: the broker will take it back.
            return
        topic, number, take, gate = receiver
        if partial.dropped:
            if gate is not None:
                gate.dropped(partial.tag)
            return
        headers = partial.headers
        published = partial.published
        if headers:
            published = _exact_time(headers, published)
        elif published is not None and published > LAST_MS:
            published = None
        take(
            Delivery(
                partial.tag,
                partial.redelivered,
                Incoming(
                    partial.message_id,
                    topic,
                    number,
                    body,
                    partial.content_type,
                    headers,
                    published,
                ),
            )
        )

    def _content_type(self, raw: bytes) -> str:
        """Decode a content type, one object for each: there are few, and they recur."""
        known = self._content_types.get(raw)
        if known is None:
            if len(self._content_types) > 1000:
                self._content_types.clear()
            known = self._content_types[raw] = raw.decode("utf-8", "backslashreplace")
        return known


def _nacks(channel: int, tags: Sequence[int]) -> bytes:
    return b"".join([_NACK(_METHOD, channel, 13, 60, 120, tag, 2, _END) for tag in tags])


def _acks(channel: int, tags: Sequence[int]) -> bytes:
    return b"".join([_ACK(_METHOD, channel, 13, 60, 80, tag, 0, _END) for tag in tags])


def _table(data: bytes, at: int, stop: int) -> tuple[Mapping[str, object] | None, int]:
    """Read a table of headers; one that can't be read is kept as it came, in hexadecimal."""
    try:
        return read_table(data, at)
    except MalformedTableError:
        end = min(stop, at + 4 + int.from_bytes(data[at : at + 4], "big"))
        return {"undecodable": data[at + 4 : end].hex()}, end


def _large_table(data: bytes, at: int, size: int) -> tuple[Mapping[str, object], int]:
    try:
        marks = _marks(data, at)
    except MalformedTableError:
        marks = {}
    return UnfitHeaders(marks, too_large(size)), at + 4 + size


def _marks(data: bytes, at: int) -> Mapping[str, object]:
    """Read what tells that a message was replayed, and nothing else."""
    found: dict[str, object] = {}
    for name, entry in read_entries(data, at):
        if name in _REPLAY_MARKS:
            value, _ = read_table(len(entry).to_bytes(4, "big") + entry, 0)
            found |= value
    return found


def _with_properties(
    headers: Mapping[str, object] | None, *, encoding: str, correlation: str
) -> Mapping[str, object] | None:
    """Keep two properties among the headers, unless the sender has put something there."""
    if isinstance(headers, UnfitHeaders):
        return headers
    given = {CONTENT_ENCODING: encoding, CORRELATION_ID: correlation}
    kept: dict[str, object] = {name: value for name, value in given.items() if value}
    return kept | dict(headers or {}) if kept else headers


def _short(data: bytes, at: int) -> str:
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "backslashreplace")


def _exact_time(headers: Mapping[str, object], otherwise: int | None) -> int | None:
    """Give the time of publishing in milliseconds that a header tells, if one does.

    One before 1970, or beyond what PostgreSQL is given, is none.
    """
    exact = headers.get("timestamp_in_ms")
    if type(exact) is not int:
        exact = otherwise
    return exact if exact is None or 0 <= exact <= LAST_MS else None
