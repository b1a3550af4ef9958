"""Messages as PostgreSQL's binary arrays, so that a batch takes one round trip.

psycopg's own list dumpers ask each element how it wants to be dumped; here a column's type is
known, so its wire format is written directly. The layout of a one-dimensional array, in big-endian
numbers: how many dimensions, whether there are NULLs, the oid of the elements' type, length, lower
bound; then each element with its length before it, -1 for NULL. (PostgreSQL's source, `array_send`
in arrayfuncs.c.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from struct import Struct
from typing import ClassVar, Final

import orjson
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming

_HEADER: Final = Struct(">iiIii").pack
_LENGTH: Final = Struct(">i").pack
_INT4: Final = Struct(">ii").pack
_INT8: Final = Struct(">iq").pack
_NULL: Final = b"\xff\xff\xff\xff"
_JSONB_VERSION: Final = b"\x01"
_UUID_BYTES: Final = 16
_VARIANT: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
"""The first digit of a UUID's fourth group, whose highest bits are 10, by a random one."""

_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: the origin of PostgreSQL's timestamps."""
LAST_MS: Final = 253_370_764_800_000
"""9999-01-01 in milliseconds since 1970: a later time of publishing counts as none."""


class Array:
    """A column of a batch in the wire format of its array type."""

    __slots__ = ("data",)
    oid: ClassVar[int]
    element: ClassVar[int]
    """The oid of the elements' type."""

    def __init_subclass__(cls, *, oid: int, element: int) -> None:
        """`oid` is that of the array type."""
        cls.oid, cls.element = oid, element
        dumper = type(f"_{cls.__name__}Dumper", (_ArrayDumper,), {"oid": oid})
        psycopg.adapters.register_dumper(cls, dumper)

    def __init__(self, cells: Sequence[bytes]) -> None:
        self.data = _HEADER(1, 1, self.element, len(cells), 1) + b"".join(cells)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


class TextArray(Array, oid=1009, element=25):
    """A `text[]`."""


class IntegerArray(Array, oid=1007, element=23):
    """An `integer[]`."""


class BigintArray(Array, oid=1016, element=20):
    """A `bigint[]`."""


class ByteaArray(Array, oid=1001, element=17):
    """A `bytea[]`."""


class JsonbArray(Array, oid=3807, element=3802):
    """A `jsonb[]`."""


class TimestampArray(Array, oid=1185, element=1184):
    """A `timestamptz[]`."""


def columns(batch: Sequence[Incoming], is_json: Sequence[bool]) -> tuple[Array, ...]:
    """Turn a batch into the array parameters of `tenantry.store_messages`, in its order."""
    nameless = sum(1 for message in batch if message.id is None)
    new_ids = iter(random_uuids(nameless))
    topics: dict[str, bytes] = {}
    types: dict[str | None, bytes] = {None: _NULL}
    ids = []
    topic_cells = []
    partition_cells = []
    payloads = []
    bodies = []
    type_cells = []
    headers = []
    times = []
    for message, json in zip(batch, is_json, strict=True):
        identity, topic, partition, body, content_type, header, published, _ = message
        ids.append(_text(next(new_ids) if identity is None else identity))
        cell = topics.get(topic)
        if cell is None:
            cell = topics[topic] = _text(topic)
        topic_cells.append(cell)
        partition_cells.append(_INT4(4, partition))
        if json:
            payloads.append(_LENGTH(len(body) + 1) + _JSONB_VERSION + body)
            bodies.append(_NULL)
        else:
            payloads.append(_NULL)
            bodies.append(_LENGTH(len(body)) + body)
        cell = types.get(content_type)
        if cell is None:
            cell = types[content_type] = _text(str(content_type))
        type_cells.append(cell)
        headers.append(_NULL if not header else _jsonb(headers_json(header)))
        times.append(
            _NULL
            if published is None or not 0 <= published <= LAST_MS
            else _INT8(8, published * 1000 - _POSTGRES_EPOCH_US)
        )
    return (
        TextArray(ids),
        TextArray(topic_cells),
        IntegerArray(partition_cells),
        JsonbArray(payloads),
        ByteaArray(bodies),
        TextArray(type_cells),
        JsonbArray(headers),
        TimestampArray(times),
    )


def text_array(values: Sequence[str | None]) -> TextArray:
    """Turn texts into an array."""
    return TextArray([_NULL if value is None else _text(value) for value in values])


def integer_array(values: Sequence[int]) -> IntegerArray:
    """Turn numbers into an array."""
    return IntegerArray([_INT4(4, value) for value in values])


def bigint_array(values: Sequence[int]) -> BigintArray:
    """Turn numbers into an array."""
    return BigintArray([_INT8(8, value) for value in values])


def bytea_array(values: Sequence[bytes]) -> ByteaArray:
    """Turn bytes into an array."""
    return ByteaArray([_LENGTH(len(value)) + value for value in values])


def headers_array(values: Sequence[Mapping[str, object] | None]) -> JsonbArray:
    """Turn header tables into an array; an empty one is NULL."""
    return JsonbArray([_jsonb(headers_json(value)) if value else _NULL for value in values])


def headers_json(headers: Mapping[str, object]) -> bytes:
    """Turn an AMQP header table into JSON that `jsonb` can hold.

    Bytes become text if they are UTF-8, else hexadecimal; NUL characters, which `jsonb` refuses,
    become U+FFFD. `JsonHeaders` are passed on unchanged.
    """
    if isinstance(headers, JsonHeaders):
        return headers.text.encode()
    encoded = orjson.dumps(headers, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    if b"\\u0000" in encoded:
        return orjson.dumps(_without_nul(orjson.loads(encoded)))
    return encoded


def random_uuids(count: int) -> list[str]:
    """Make `count` random UUIDs (version 4), written as text.

    `uuid.uuid4` asks the system each time, and releases the interpreter's lock for it: among busy
    threads every call waits for the lock again. Here many UUIDs cost one call.
    """
    noise = os.urandom(_UUID_BYTES * count).hex()
    digits = 2 * _UUID_BYTES
    return [_uuid(noise[start : start + digits]) for start in range(0, len(noise), digits)]


def _uuid(noise: str) -> str:
    """Write hexadecimal noise as a UUID of version 4 (RFC 9562), a fifth of what `UUID` takes."""
    last = f"{_VARIANT[noise[16]]}{noise[17:20]}-{noise[20:]}"
    return f"{noise[:8]}-{noise[8:12]}-4{noise[13:16]}-{last}"


def _text(value: str) -> bytes:
    data = value.encode()
    return _LENGTH(len(data)) + data


def _jsonb(data: bytes) -> bytes:
    return _LENGTH(len(data) + 1) + _JSONB_VERSION + data


def _plain(value: object) -> object:
    match value:
        case bytes() | bytearray():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value.hex()
        case Decimal():
            return str(value)
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


def _without_nul(value: object) -> object:
    match value:
        case str():
            return value.replace("\x00", "\ufffd")
        case dict():
            return {str(_without_nul(key)): _without_nul(item) for key, item in value.items()}
        case list():
            return [_without_nul(item) for item in value]
        case _:
            return value
