"""Messages as PostgreSQL's binary arrays: what one round trip a batch is made of.

psycopg's own list dumpers ask each element how it wants to be dumped; here a column's type is
known, so its wire format is written straight down. The layout of a one-dimensional array, in
big-endian numbers: how many dimensions, whether there are NULLs, the oid of the elements' type,
length, lower bound; then each element with its length before it, -1 for NULL. (PostgreSQL's source,
`array_send` in arrayfuncs.c.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from struct import Struct
from typing import Final

import orjson
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from tenantry.messages.headers import JsonHeaders
from tenantry.messages.port import Incoming
from tenantry.uuids import random_uuids

_HEADER: Final = Struct(">iiIii").pack
_LENGTH: Final = Struct(">i").pack
_INT4: Final = Struct(">ii").pack
_INT8: Final = Struct(">iq").pack
_NULL: Final = b"\xff\xff\xff\xff"
_JSONB_VERSION: Final = b"\x01"

_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: where PostgreSQL's timestamps begin."""
LAST_MS: Final = 253_370_764_800_000
"""9999-01-01 in milliseconds since 1970: a time of publishing beyond it is none."""

_BYTEA, _BIGINT, _TEXT, _INTEGER, _TIMESTAMPTZ, _JSONB = 17, 20, 25, 23, 1184, 3802


class Array:
    """A column of a batch in the wire format of its array type."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class TextArray(Array):
    """A `text[]`."""


class IntegerArray(Array):
    """An `integer[]`."""


class BigintArray(Array):
    """A `bigint[]`."""


class ByteaArray(Array):
    """A `bytea[]`."""


class JsonbArray(Array):
    """A `jsonb[]`."""


class TimestampArray(Array):
    """A `timestamptz[]`."""


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


for _class, _oid in (
    (TextArray, 1009),
    (IntegerArray, 1007),
    (BigintArray, 1016),
    (ByteaArray, 1001),
    (JsonbArray, 3807),
    (TimestampArray, 1185),
):
    psycopg.adapters.register_dumper(
        _class, type(f"_{_class.__name__}Dumper", (_ArrayDumper,), {"oid": _oid})
    )


def columns(batch: Sequence[Incoming], is_json: Sequence[bool]) -> tuple[Array, ...]:
    """Turn a batch into the array parameters of `tenantry.store_messages`, in its order."""
    size = len(batch)
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
        TextArray(_array(_TEXT, size, ids)),
        TextArray(_array(_TEXT, size, topic_cells)),
        IntegerArray(_array(_INTEGER, size, partition_cells)),
        JsonbArray(_array(_JSONB, size, payloads)),
        ByteaArray(_array(_BYTEA, size, bodies)),
        TextArray(_array(_TEXT, size, type_cells)),
        JsonbArray(_array(_JSONB, size, headers)),
        TimestampArray(_array(_TIMESTAMPTZ, size, times)),
    )


def text_array(values: Sequence[str | None]) -> TextArray:
    """Turn texts into an array."""
    return TextArray(_array(_TEXT, len(values), [_NULL if v is None else _text(v) for v in values]))


def integer_array(values: Sequence[int]) -> IntegerArray:
    """Turn numbers into an array."""
    return IntegerArray(_array(_INTEGER, len(values), [_INT4(4, value) for value in values]))


def bigint_array(values: Sequence[int]) -> BigintArray:
    """Turn numbers into an array."""
    return BigintArray(_array(_BIGINT, len(values), [_INT8(8, value) for value in values]))


def bytea_array(values: Sequence[bytes]) -> ByteaArray:
    """Turn bytes into an array."""
    return ByteaArray(
        _array(_BYTEA, len(values), [_LENGTH(len(value)) + value for value in values])
    )


def headers_array(values: Sequence[Mapping[str, object] | None]) -> JsonbArray:
    """Turn header tables into an array; an empty one is NULL."""
    cells = [_jsonb(headers_json(value)) if value else _NULL for value in values]
    return JsonbArray(_array(_JSONB, len(values), cells))


def headers_json(headers: Mapping[str, object]) -> bytes:
    """Turn an AMQP header table into JSON that `jsonb` can hold.

    Bytes become text where they are UTF-8, hexadecimal otherwise; NUL characters, which `jsonb`
    refuses, become U+FFFD. What came as JSON goes as it came.
    """
    if isinstance(headers, JsonHeaders):
        return headers.text.encode()
    encoded = orjson.dumps(headers, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    if b"\\u0000" in encoded:
        return orjson.dumps(_without_nul(orjson.loads(encoded)))
    return encoded


def _array(oid: int, size: int, cells: list[bytes]) -> bytes:
    return _HEADER(1, 1, oid, size, 1) + b"".join(cells)


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
