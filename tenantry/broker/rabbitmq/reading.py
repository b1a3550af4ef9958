"""Reads deliveries straight from the bytes received: the hottest path of the daemon.

pika builds five objects per message and looks each of its frames up in a table of callbacks; on
that path it takes most of the daemon's processor time. Here the three frames of a delivery (method,
header, body; AMQP 0-9-1, chapter 4.2) become one `Delivery`, and only stored properties are read.
All other frames are left to pika.

Header tables are decoded without loss: pika reads fractions as whole numbers and fails on a key
that is not UTF-8; a message's headers are the sender's, and kept as they are. (Chapter 4.2.5, with
RabbitMQ's errata for the letters of the types.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol, TypeAlias

from pika import frame as pika_frame
from pika.exceptions import InvalidFrameError

from tenantry.broker.port import Delivery
from tenantry.broker.rabbitmq.pika_internals import FrameReadingConnection
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
"""A consumer's topic, its partition, the function that takes its deliveries, and its gate."""

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
END: Final = 0xCE
FRAME_OVERHEAD: Final = 8
"""Bytes of a frame beside its payload: type, channel, size; and the end mark."""

PROPERTIES: Final = tuple(1 << bit for bit in range(15, 1, -1))
"""The flags of a message's properties, in the properties' order (the class basic)."""

(
    CONTENT_TYPE_FLAG,
    CONTENT_ENCODING_FLAG,
    HEADERS_FLAG,
    DELIVERY_MODE_FLAG,
    PRIORITY_FLAG,
    CORRELATION_ID_FLAG,
    REPLY_TO_FLAG,
    EXPIRATION_FLAG,
    MESSAGE_ID_FLAG,
    TIMESTAMP_FLAG,
    _TYPE_FLAG,
    USER_ID_FLAG,
    _APP_ID_FLAG,
    _CLUSTER_ID_FLAG,
) = PROPERTIES

_REPLAY_MARKS: Final = (REPLAY_HEADER.encode(), REPLAYS_HEADER.encode())

_DELIVER: Final = b"\x00\x3c\x00\x3c"
"""Class 60, method 60."""

_frame: Final = struct.Struct(">BHI").unpack_from
_u32: Final = struct.Struct(">I").unpack_from
_u64: Final = struct.Struct(">Q").unpack_from
_content: Final = struct.Struct(">HHQH").unpack_from

_SKIPPED_TEXTS: Final = (CORRELATION_ID_FLAG, REPLY_TO_FLAG, EXPIRATION_FLAG)
_KEPT: Final = CONTENT_ENCODING_FLAG | CORRELATION_ID_FLAG


class Gate(Protocol):
    """Decides for each delivery, before its body is read, whether it is kept."""

    def admit(self, body: int, table: int) -> bool:
        """Return whether a channel's next delivery is kept, by its bytes of body and headers."""

    def dropped(self, tag: int) -> None:
        """Handle the end of a delivery that was not admitted."""


_ACK: Final = struct.Struct(">BHIHHQBB").pack
"""A whole frame: method, channel, size; class 60, method 80, delivery tag, not multiple; end."""
_NACK: Final = _ACK
"""The same but for the method, 120, and its bits: not multiple, back to the queue."""


class _Partial:
    """A delivery whose frames have not all arrived."""

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


class ReadingConnection(FrameReadingConnection):
    """A connection that passes deliveries to receivers, without pika's channels."""

    largest_table = MOST_BYTES
    """The most bytes of headers that are read; of larger ones, only the marks of a replay."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._receivers: dict[tuple[int, bytes], Receiver] = {}
        self._partial: dict[int, _Partial] = {}
        self._content_types: dict[bytes, str] = {}
        self.settled_at = 0.0
        super().__init__(*arguments, **keywords)

    def receive(self, channel: int, consumer_tag: str, receiver: Receiver) -> None:
        """Pass a consumer's deliveries to `receiver`; call it before consuming."""
        self._receivers[channel, consumer_tag.encode()] = receiver

    def forget(self, channel: int) -> None:
        """Drop deliveries that still arrive on a channel that is being closed."""
        partial = self._partial.get(channel)
        if partial is not None:
            # The rest of a delivery must still be read here: pika has not seen its beginning.
            partial.receiver, partial.dropped = None, True
            partial.body.clear()
        for key in [key for key in self._receivers if key[0] == channel]:
            del self._receivers[key]

    def ack_each(self, channel: int, tags: Sequence[int]) -> None:
        """Ack deliveries one by one; for many, this takes a tenth of pika's time."""
        self.send_frames(_acks(channel, tags))

    def give_back(self, channel: int, tags: Sequence[int]) -> None:
        """Give deliveries back to their queues, one by one."""
        self.send_frames(_nacks(channel, tags))

    def read_frames(self, data: bytes) -> bytes:
        """Read deliveries; pass all other frames to pika."""
        size = len(data)
        offset = 0
        partial = self._partial
        while size - offset >= FRAME_OVERHEAD:
            kind, channel, length = _frame(data, offset)
            start = offset + 7
            stop = start + length
            if stop >= size:
                break
            if data[stop] != END:
                raise InvalidFrameError("Invalid FRAME_END marker")
            if kind == BODY and channel in partial:
                self._body(channel, data[start:stop])
            elif kind == HEADER and channel in partial:
                self._header(channel, data, start, stop)
            elif kind == METHOD and data[start : start + 4] == _DELIVER:
                self._deliver(channel, data, start + 4)
            else:
                _, frame = pika_frame.decode_frame(data[offset : stop + 1])
                if frame is not None:
                    self.process_frame(frame)
            offset = stop + 1
        return data[offset:] if offset else data

    def _deliver(self, channel: int, data: bytes, at: int) -> None:
        """Begin a delivery: read consumer tag, delivery tag and redelivered; the rest is known."""
        end = at + 1 + data[at]
        self._partial[channel] = _Partial(
            self._receivers.get((channel, data[at + 1 : end])),
            _u64(data, end)[0],
            data[end + 8] & 1 == 1,
        )

    def _header(self, channel: int, data: bytes, at: int, stop: int) -> None:
        """Read the properties that are kept, and ask the gate whether the delivery is kept."""
        partial = self._partial[channel]
        _, _, missing, flags = _content(data, at)
        partial.missing = missing
        table = 0
        try:
            at += 14
            if flags & CONTENT_TYPE_FLAG:
                end = at + 1 + data[at]
                partial.content_type = self._content_type(data[at + 1 : end])
                at = end
            encoding = at
            if flags & CONTENT_ENCODING_FLAG:
                at += 1 + data[at]
            if flags & HEADERS_FLAG:
                table = _u32(data, at)[0]
                if table <= self.largest_table:
                    partial.headers, at = _headers(data, at, stop)
                else:
                    partial.headers, at = _large_headers(data, at, table)
            if flags & DELIVERY_MODE_FLAG:
                at += 1
            if flags & PRIORITY_FLAG:
                at += 1
            correlation = at
            for text in _SKIPPED_TEXTS:
                if flags & text:
                    at += 1 + data[at]
            if flags & MESSAGE_ID_FLAG:
                end = at + 1 + data[at]
                # An empty id counts as none.
                if end > at + 1:
                    partial.message_id = data[at + 1 : end].decode("utf-8", "backslashreplace")
                at = end
            if flags & TIMESTAMP_FLAG:
                partial.published = _u64(data, at)[0] * 1000
            if flags & _KEPT:
                partial.headers = _with_properties(
                    partial.headers,
                    encoding=_short(data, encoding) if flags & CONTENT_ENCODING_FLAG else "",
                    correlation=_short(data, correlation) if flags & CORRELATION_ID_FLAG else "",
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
            # The channel is being closed: the delivery returns to its queue.
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
        """Decode a content type, and reuse the text: there are few, and they recur."""
        known = self._content_types.get(raw)
        if known is None:
            if len(self._content_types) > 1000:
                self._content_types.clear()
            known = self._content_types[raw] = raw.decode("utf-8", "backslashreplace")
        return known


def _nacks(channel: int, tags: Sequence[int]) -> bytes:
    return b"".join([_NACK(METHOD, channel, 13, 60, 120, tag, 2, END) for tag in tags])


def _acks(channel: int, tags: Sequence[int]) -> bytes:
    return b"".join([_ACK(METHOD, channel, 13, 60, 80, tag, 0, END) for tag in tags])


def _headers(data: bytes, at: int, stop: int) -> tuple[Mapping[str, object] | None, int]:
    """Read a table of headers; keep an unreadable one as it came, in hexadecimal."""
    try:
        return read_table(data, at)
    except MalformedTableError:
        end = min(stop, at + 4 + int.from_bytes(data[at : at + 4], "big"))
        return {"undecodable": data[at + 4 : end].hex()}, end


def _large_headers(data: bytes, at: int, size: int) -> tuple[Mapping[str, object], int]:
    try:
        marks = _marks(data, at)
    except MalformedTableError:
        marks = {}
    return UnfitHeaders(marks, too_large(size)), at + 4 + size


def _marks(data: bytes, at: int) -> Mapping[str, object]:
    """Read the marks of a replayed message, and nothing else."""
    found: dict[str, object] = {}
    for name, entry in read_entries(data, at):
        if name in _REPLAY_MARKS:
            value, _ = read_table(len(entry).to_bytes(4, "big") + entry, 0)
            found |= value
    return found


def _with_properties(
    headers: Mapping[str, object] | None, *, encoding: str, correlation: str
) -> Mapping[str, object] | None:
    """Add two properties to the headers, unless the sender has set headers of these names."""
    if isinstance(headers, UnfitHeaders):
        return headers
    given = {CONTENT_ENCODING: encoding, CORRELATION_ID: correlation}
    kept: dict[str, object] = {name: value for name, value in given.items() if value}
    return kept | dict(headers or {}) if kept else headers


def _short(data: bytes, at: int) -> str:
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "backslashreplace")


def _exact_time(headers: Mapping[str, object], otherwise: int | None) -> int | None:
    """Return the time of publishing in milliseconds, from its header if there is one.

    None for a time before 1970, or later than PostgreSQL is given.
    """
    exact = headers.get("timestamp_in_ms")
    if type(exact) is not int:
        exact = otherwise
    return exact if exact is None or 0 <= exact <= LAST_MS else None


# Header tables.

DEEPEST: Final = 32
"""The most tables and lists within one another; a deeper table is not read."""

_CODES: Final = {
    "t": "?", "b": "b", "B": "B", "U": "h", "s": "h", "u": "H",
    "I": "i", "i": "I", "L": "q", "l": "q", "f": "f", "d": "d",
}  # fmt: skip
"""The types of numbers by RabbitMQ's letters, as `struct` names them."""

_NUMBERS: Final[dict[int, tuple[Callable[[bytes, int], tuple[Any, ...]], int]]] = {
    ord(letter): (struct.Struct(f">{code}").unpack_from, struct.calcsize(f">{code}"))
    for letter, code in _CODES.items()
}
_i32: Final = struct.Struct(">i").unpack_from


class MalformedTableError(ValueError):
    """The bytes are not a table."""


def read_table(data: bytes, at: int) -> tuple[dict[str, object], int]:
    """Decode the table that begins at `at`; return it and the offset of its end.

    Text that is not UTF-8 stays bytes; keys are always text. Raises `MalformedTableError`.
    """
    try:
        return _table(data, at, 0)
    except (struct.error, IndexError, OverflowError) as error:
        raise MalformedTableError(str(error)) from error


def read_entries(data: bytes, at: int) -> list[tuple[bytes, bytes]]:
    """Split the table that begins at `at` into keys, each with the bytes of its whole entry.

    Raises `MalformedTableError`.
    """
    try:
        end = _end(data, at, 0)
        at += 4
        entries = []
        while at < end:
            stop = at + 1 + data[at]
            _, after = _value(data, stop, 0)
            entries.append((data[at + 1 : stop], data[at:after]))
            at = after
    except (struct.error, IndexError, OverflowError) as error:
        raise MalformedTableError(str(error)) from error
    if at != end:
        raise MalformedTableError("a value goes beyond its table")
    return entries


def _table(data: bytes, at: int, depth: int) -> tuple[dict[str, object], int]:
    end = _end(data, at, depth)
    at += 4
    table: dict[str, object] = {}
    while at < end:
        stop = at + 1 + data[at]
        key = data[at + 1 : stop].decode("utf-8", "backslashreplace")
        table[key], at = _value(data, stop, depth)
    if at != end:
        raise MalformedTableError("a value goes beyond its table")
    return table, end


def _list(data: bytes, at: int, depth: int) -> tuple[list[object], int]:
    end = _end(data, at, depth)
    at += 4
    items: list[object] = []
    while at < end:
        item, at = _value(data, at, depth)
        items.append(item)
    if at != end:
        raise MalformedTableError("a value goes beyond its list")
    return items, end


def _end(data: bytes, at: int, depth: int) -> int:
    if depth >= DEEPEST:
        raise MalformedTableError(f"more than {DEEPEST} tables within one another")
    end: int = at + 4 + _u32(data, at)[0]
    if end > len(data):
        raise MalformedTableError("it goes beyond the data")
    return end


def _value(data: bytes, at: int, depth: int) -> tuple[object, int]:
    kind = data[at]
    at += 1
    number = _NUMBERS.get(kind)
    if number is not None:
        unpack, size = number
        return unpack(data, at)[0], at + size
    match chr(kind):
        case "S" | "x" as letter:
            end = at + 4 + _u32(data, at)[0]
            if end > len(data):
                raise MalformedTableError("a text goes beyond the data")
            raw = data[at + 4 : end]
            return (raw if letter == "x" else _text(raw)), end
        case "F":
            return _table(data, at, depth + 1)
        case "A":
            return _list(data, at, depth + 1)
        case "V":
            return None, at
        case "T":
            return _time(_u64(data, at)[0]), at + 8
        case "D":
            return Decimal(_i32(data, at + 1)[0]).scaleb(-data[at]), at + 5
        case letter:
            raise MalformedTableError(f"{letter!r} is no type of a value")


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _time(seconds: int) -> datetime | int:
    """Return a time in UTC; a number beyond the year 9999 stays a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds
