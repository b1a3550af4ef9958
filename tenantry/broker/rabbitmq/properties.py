"""All of a message's properties, as they stand on the wire: to be sent out again unchanged.

Nothing is decoded that need not be: each of the fourteen properties and each header is passed on
byte by byte, so that no type is widened and no text is spelt anew. (AMQP 0-9-1, chapter 4.2.6.1.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

from tenantry.broker.rabbitmq.reading import ReadingConnection
from tenantry.broker.rabbitmq.tables import MalformedTableError, read_entries

USER_HEADER: Final = "x-tenantry-user-id"
"""Holds the `user-id` of a message that was replayed: RabbitMQ takes that property only from the
user it names."""

_HEADERS: Final = 1 << 13
_DELIVERY_MODE: Final = 1 << 12
_EXPIRATION: Final = 1 << 8
_MESSAGE_ID: Final = 1 << 7
_USER_ID: Final = 1 << 4
_SIZES: Final = {_DELIVERY_MODE: 1, 1 << 11: 1, 1 << 6: 8}
"""Delivery mode, priority, timestamp. The headers are a table; all others are short texts."""
_ORDER: Final = tuple(1 << bit for bit in range(15, 1, -1))
"""Content type and encoding, headers, delivery mode, priority, correlation id, reply-to,
expiration, message id, timestamp, type, user id, app id, cluster id."""

_PERSISTENT: Final = b"\x02"
_BROKERS_OWN: Final = (b"x-death", b"x-first-death-", b"x-last-death-", b"x-delivery-count")
_ROUTES: Final = (b"CC", b"BCC")
_LONGEST: Final = 255

_u16: Final = struct.Struct(">H")
_u32: Final = struct.Struct(">I")


class WholeReadingConnection(ReadingConnection):
    """Keeps the properties of the delivery that is being read on each channel, all of them."""

    largest_table = 2**32
    """What the broker tells of a death stands in the table, however large it is."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._properties: dict[int, bytes] = {}
        super().__init__(*arguments, **keywords)

    def take_properties(self, channel: int) -> bytes:
        """Give the properties of the delivery a receiver has just been given."""
        return self._properties.pop(channel)

    def _header(self, channel: int, data: bytes, at: int, stop: int) -> None:
        self._properties[channel] = data[at + 12 : stop]
        super()._header(channel, data, at, stop)


def republished(
    properties: bytes, *, headers: Sequence[tuple[bytes, bytes]], message_id: bytes | None
) -> bytes:
    """Give properties as they go out again, with `headers` (name and entry) in place of the same.

    Left out is what would mislead the broker: its own headers about the death, further routes
    (`CC`, `BCC`: the message goes to one queue), and the expiration, which is what it died of if
    it had one. `user-id` becomes a header. The message is persistent, whatever it was. `message_id`
    is for a message without one.
    """
    values = _split(properties)
    values.pop(_EXPIRATION, None)
    values[_DELIVERY_MODE] = _PERSISTENT
    if message_id is not None:
        values.setdefault(_MESSAGE_ID, message_id)
    added = list(headers)
    user = values.pop(_USER_ID, None)
    if user is not None:
        name = USER_HEADER.encode()
        added.append((name, _short(name) + b"S" + _u32.pack(user[0]) + user[1:]))
    replaced = {name for name, _ in added}
    try:
        entries = read_entries(values[_HEADERS], 0) if _HEADERS in values else []
    except MalformedTableError:
        entries = []  # the broker itself reads them, to tell of the death
    kept = [
        entry
        for name, entry in entries
        if not (name in replaced or name in _ROUTES or name.startswith(_BROKERS_OWN))
    ]
    table = b"".join((*kept, *(entry for _, entry in added)))
    values[_HEADERS] = _u32.pack(len(table)) + table
    flags = sum(values)
    return _u16.pack(flags) + b"".join(values[flag] for flag in _ORDER if flag in values)


def _split(properties: bytes) -> dict[int, bytes]:
    """Cut properties into their values, by flag."""
    (flags,) = _u16.unpack_from(properties)
    at = _u16.size
    values: dict[int, bytes] = {}
    for flag in _ORDER:
        if not flags & flag:
            continue
        if flag == _HEADERS:
            size = 4 + _u32.unpack_from(properties, at)[0]
        else:
            size = _SIZES.get(flag) or 1 + properties[at]
        values[flag] = properties[at : at + size]
        at += size
    return values


def _short(data: bytes) -> bytes:
    return bytes((min(len(data), _LONGEST),)) + data[:_LONGEST]
