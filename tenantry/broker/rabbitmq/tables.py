"""AMQP's header tables, decoded without loss.

pika reads fractions as whole numbers and fails on a key that is not UTF-8; a message's headers are
the sender's, and kept as they are. (AMQP 0-9-1, chapter 4.2.5, with RabbitMQ's errata for the
letters of the types.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

DEEPEST: Final = 32
"""The most tables and lists within one another; a deeper table is not read."""

_u32: Final = struct.Struct(">I").unpack_from
_i32: Final = struct.Struct(">i").unpack_from
_u64: Final = struct.Struct(">Q").unpack_from

_NUMBERS: Final[dict[int, tuple[Callable[[bytes, int], tuple[Any, ...]], int]]] = {
    ord(letter): (struct.Struct(f">{code}").unpack_from, struct.calcsize(f">{code}"))
    for letter, code in (
        ("t", "?"),
        ("b", "b"),
        ("B", "B"),
        ("U", "h"),
        ("s", "h"),
        ("u", "H"),
        ("I", "i"),
        ("i", "I"),
        ("L", "q"),
        ("l", "q"),
        ("f", "f"),
        ("d", "d"),
    )
}


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
