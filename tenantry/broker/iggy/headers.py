"""Iggy's typed headers: converted to JSON, packed in dead letters, and made for sending.

Iggy's own header values have a type and at most 255 bytes. JSON values beyond that (lists, objects,
null, long texts) go in pieces, as JSON, under names of ours. So does an id that is not a UUID, as
Iggy's own field for ids takes only UUIDs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tenantry.messages.encoding import LAST_MS, headers_json
from tenantry.messages.headers import MOST_BYTES, UnfitHeaders
from tenantry.messages.validation import UNREADABLE, too_large

if TYPE_CHECKING:
    from apache_iggy import HeaderKey, HeaderValue, ReceiveMessage

MESSAGE_ID: Final = "message-id"
CONTENT_TYPE: Final = "content-type"
PIECE: Final = "x-tenantry-json."
"""Followed by a number: a piece of the JSON object of all that fits into no header of Iggy's."""

LONG: Final = "x-tenantry-"
"""The prefix for an id or a content type that is too long for a header of Iggy's."""

EXACT_TIME: Final = "timestamp_in_ms"

LONGEST: Final = 255
"""The most bytes of a header's name, and of its value."""

_KINDS: Final = (
    "Raw", "String", "Bool", "Int8", "Int16", "Int32", "Int64", "Int128", "UnsignedInt8",
    "UnsignedInt16", "UnsignedInt32", "UnsignedInt64", "UnsignedInt128", "Float32", "Float64",
)  # fmt: skip
"""In the order of their numbers on the wire, which begin with 1."""

_NUMBERS: Final = {name: number for number, name in enumerate(_KINDS, 1)}
_FIELD: Final = struct.Struct("<BI")
_ID_BYTES: Final = 16
_EXACT_64: Final = range(-(2**63), 2**64)
_UUID: Final = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Told(NamedTuple):
    """The contents of a message's headers; `headers` are those that are stored as such."""

    id: str | None
    content_type: str | None
    headers: Mapping[str, object] | None
    published_at_ms: int | None
    size: int
    """Bytes of the headers, roughly."""


def own_id(message: ReceiveMessage, topic: str, partition: int, stamp: int) -> str:
    """Return the id of a message whose headers name none.

    It is Iggy's own, which is a UUID; else the message's place and the time at which it was stored
    there: a place is used again once a topic was purged, or made anew.
    """
    number = message.id()
    if not number:
        return f"{topic}.{partition}.{message.offset()}.{stamp}"
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def published(message: ReceiveMessage, stamp: int) -> int:
    """Return the time a message was made at, in milliseconds; else the one it was stored at."""
    made = message.origin_timestamp()
    return (made if 0 < made <= stamp else stamp) // 1000


def told(message: ReceiveMessage, own_id: str, published_at_ms: int) -> Told:
    """Read a message's headers. Whatever its sender has put there, this never raises.

    `own_id` is the id if no header names one. Unreadable headers are described by the flaw of
    `UnfitHeaders`.
    """
    try:
        typed = message.user_headers()
        if typed is None:
            return Told(own_id, None, None, published_at_ms, 0)
        return told_by(typed, own_id, published_at_ms)
    except Exception as error:  # noqa: BLE001 - the sender's doing, and this thread is everybody's
        reason = f"its headers: {error}"[:500]
    except BaseException as error:
        # A panic of the library is no `Exception`; all other exceptions must pass.
        if type(error).__name__ != "PanicException":
            raise
        reason = "its headers make the client library fail"
    return Told(own_id, None, UnfitHeaders({}, (UNREADABLE, reason)), published_at_ms, 0)


def told_by(typed: Mapping[Any, Any], own_id: str, published_at_ms: int) -> Told:
    """Read typed headers, as `told` does, but without catching errors."""
    if not typed:
        return Told(own_id, None, None, published_at_ms, 0)
    table = as_json(typed)
    size = sum(len(name) + _size(value) for name, value in table.items())
    # Before the pieces are joined: headers of these names in the pieces are the sender's own.
    message_id = table.pop(MESSAGE_ID, None)
    content_type = table.pop(CONTENT_TYPE, None)
    pieces = [name for name in table if name.startswith(PIECE)]
    if pieces:
        _join(table, pieces)
        message_id = table.pop(LONG + MESSAGE_ID, message_id)
        content_type = table.pop(LONG + CONTENT_TYPE, content_type)
    exact = table.get(EXACT_TIME)
    if type(exact) is int and 0 <= exact <= LAST_MS:
        published_at_ms = exact
    headers: Mapping[str, object] | None = table or None
    if size > MOST_BYTES:
        headers = UnfitHeaders({}, too_large(size))
    return Told(
        own_id if message_id is None else _text(message_id),
        None if content_type is None else _text(content_type),
        headers,
        published_at_ms,
        size,
    )


def _join(table: dict[str, object], pieces: list[str]) -> None:
    """Replace the pieces by the JSON object they hold, if they hold one."""
    try:
        pieces.sort(key=lambda name: int(name[len(PIECE) :]))
        held = orjson.loads(b"".join(_bytes(table[name]) for name in pieces))
    except ValueError:
        return
    if isinstance(held, dict):
        for name in pieces:
            del table[name]
        table.update(held)


def as_json(typed: Mapping[Any, Any]) -> dict[str, object]:
    """Convert typed headers to a table whose names are text.

    Other names are converted to text; of two that become equal, the later gets its type added.
    """
    table: dict[str, object] = {}
    for key, value in typed.items():
        name = _text(key.value)
        if name in table:
            name = f"{name} ({type(key).__name__})"
        plain = value.value
        if type(plain) is int and plain not in _EXACT_64:
            plain = Decimal(plain)
        table[name] = plain
    return table


def pack(message_id: int, typed: Mapping[HeaderKey, HeaderValue] | None) -> bytes:
    """Pack a message's id and its typed headers into bytes for `unpack`."""
    parts = [message_id.to_bytes(_ID_BYTES, "little")]
    for key, value in (typed or {}).items():
        for one in (key, value):
            kind = type(one).__name__
            data = _encoded(kind, getattr(one, "value", None))
            parts += (_FIELD.pack(_NUMBERS[kind], len(data)), data)
    return b"".join(parts)


def unpack(packed: bytes) -> tuple[int, dict[HeaderKey, HeaderValue]]:
    """Read the result of `pack`."""
    import apache_iggy as iggy

    fields: list[tuple[str, object]] = []
    at = _ID_BYTES
    while at < len(packed):
        number, size = _FIELD.unpack_from(packed, at)
        at += _FIELD.size
        kind = _KINDS[number - 1]
        fields.append((kind, _decoded(kind, packed[at : at + size])))
        at += size
    keys, values = fields[::2], fields[1::2]
    typed = {
        getattr(iggy.HeaderKey, key_kind)(key): getattr(iggy.HeaderValue, value_kind)(value)
        for (key_kind, key), (value_kind, value) in zip(keys, values, strict=True)
    }
    return int.from_bytes(packed[:_ID_BYTES], "little"), typed


def uuid_of(message_id: str) -> int | None:
    """Return the number for an id in Iggy's own field; None if the id is not such a UUID."""
    if _UUID.fullmatch(message_id) is None:
        return None
    return int(message_id.replace("-", ""), 16) or None


def sendable(
    message_id: str | None, content_type: str | None, headers: Mapping[str, object]
) -> dict[HeaderKey, HeaderValue]:
    """Make the typed headers to send; `message_id` only if it goes among them.

    Raises `UnreadableHeadersError` for JSON that can't be read, ValueError for too much.
    """
    import apache_iggy as iggy

    sent: dict[HeaderKey, HeaderValue] = {}
    rest: dict[str, object] = {}
    for name, own in ((MESSAGE_ID, message_id), (CONTENT_TYPE, content_type)):
        if own and _kind_for(own) is not None:
            sent[iggy.HeaderKey.String(name)] = iggy.HeaderValue.String(own)
        elif own:
            rest[LONG + name] = own
    for name, value in headers.items():
        kind = _kind_for(value) if _is_plain(name) else None
        if kind is None:
            rest[name] = value
        else:
            sent[iggy.HeaderKey.String(name)] = getattr(iggy.HeaderValue, kind)(value)
    if rest:
        text = headers_json(rest)
        for number, at in enumerate(range(0, len(text), LONGEST)):
            key = iggy.HeaderKey.String(f"{PIECE}{number}")
            sent[key] = iggy.HeaderValue.Raw(text[at : at + LONGEST])
    return sent


def _is_plain(name: str) -> bool:
    """Return whether a sender's header can keep this name on Iggy."""
    ours = name in {MESSAGE_ID, CONTENT_TYPE} or name.startswith(PIECE)
    return not ours and 0 < len(name.encode()) <= LONGEST


def _kind_for(value: object) -> str | None:
    match value:
        case bool():
            return "Bool"
        case int() if -(2**63) <= value < 2**63:
            return "Int64"
        case float():
            return "Float64"
        case str() if 0 < len(value.encode()) <= LONGEST:
            return "String"
        case bytes() if 0 < len(value) <= LONGEST:
            return "Raw"
        case _:
            return None


def _encoded(kind: str, value: object) -> bytes:
    if kind == "Raw":
        return bytes(value)  # type: ignore[call-overload, no-any-return]
    if kind == "String":
        return str(value).encode()
    if kind.startswith("Float"):
        return struct.pack("<d", value)
    return int(value).to_bytes(17, "little", signed=True)  # type: ignore[call-overload, no-any-return]


def _decoded(kind: str, data: bytes) -> object:
    if kind == "Raw":
        return data
    if kind == "String":
        return data.decode()
    if kind.startswith("Float"):
        return struct.unpack("<d", data)[0]
    number = int.from_bytes(data, "little", signed=True)
    return bool(number) if kind == "Bool" else number


def _text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, bytes)) else 8
