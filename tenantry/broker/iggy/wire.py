"""Requests that the client library lacks, and their answers, as bytes of Iggy's protocol.

They go through `IggyClient.send_binary_request`. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from tenantry.broker.iggy.topology import Place

GET_STATS: Final = 10
GET_CLIENTS: Final = 22
GET_OFFSET: Final = 120
STORE_OFFSET: Final = 121
GET_STREAMS: Final = 201
CREATE_TOPIC: Final = 302
SYNC_GROUP: Final = 606

_NAME: Final = 2
_ALONE: Final = 1
_GROUP: Final = 2
_REPLICATED: Final = 1
"""An offset counts as stored once it would survive a restart of the server."""

_OFFSETS: Final = struct.Struct("<IQQ")
_STREAM: Final = struct.Struct("<IQIQQB")
_ASSIGNED: Final = struct.Struct("<QI")


_TEXT, _BOOL, _UINT32, _UINT64 = 2, 3, 11, 12
_UNLIMITED: Final = struct.pack("<Q", 2**64 - 1)


class Offsets(NamedTuple):
    """The last message's offset in a partition, and the offset that a group has stored."""

    last: int
    stored: int


def create_topic(stream: str, topic: str, partitions: int, options: Iterable[str]) -> bytes:
    """Make a topic that keeps all messages, written to the disk before they are confirmed.

    The library's own call names an option that servers before 0.9.0 refuse. `options` are the names
    of the options that this server knows.
    """
    known = frozenset(options)
    if "durability" in known:
        known -= {"messages_required_to_save"}
    chosen = b"".join(
        _field(_TEXT, name.encode()) + value for name, value in _OPTIONS.items() if name in known
    )
    named = topic.encode()
    return _named(stream) + struct.pack("<IB", partitions, len(named)) + named + chosen


def get_offset(group: str, place: Place, *, alone: bool = False) -> bytes:
    """Ask for the offset a group has stored; `read_offsets` reads the answer.

    With `alone` it is the offset of the consumer of this name without a group.
    """
    return _place(group, place, alone=alone)


def store_offset(group: str, place: Place, offset: int, *, alone: bool = False) -> bytes:
    """Store the offset of the last message of a partition that a group has settled."""
    return _place(group, place, alone=alone) + struct.pack("<QB", offset, _REPLICATED)


def sync_group(group: str, stream: str, topic: str) -> bytes:
    """Ask which partitions of a group are assigned to this connection; see `read_assignment`."""
    return _named(stream) + _named(topic) + _named(group)


def read_offsets(answer: bytes) -> Offsets | None:
    """Read the answer to `get_offset`; None if no offset has been stored."""
    if not answer:
        return None
    _, last, stored = _OFFSETS.unpack_from(answer)
    return Offsets(last, stored)


def read_streams(answer: bytes) -> dict[str, tuple[int, int]]:
    """Read the list of all streams: the number of messages in each, and their bytes.

    The library's own call makes an object per stream. This list is requested all the time, and the
    answer is usually the same as before, which comparing its bytes shows at once.
    """
    streams: dict[str, tuple[int, int]] = {}
    at = 0
    while at < len(answer):
        _, _, _, size, messages, length = _STREAM.unpack_from(answer, at)
        at += _STREAM.size
        streams[answer[at : at + length].decode()] = messages, size
        at += length
        at += 4 + int.from_bytes(answer[at : at + 4], "little")
    return streams


def read_assignment(answer: bytes) -> frozenset[int]:
    """Read the answer to `sync_group`; empty for a connection that is not a member."""
    if not answer:
        return frozenset()
    _, count = _ASSIGNED.unpack_from(answer)
    return frozenset(struct.unpack_from(f"<{count}I", answer, _ASSIGNED.size))


def _place(group: str, place: Place, *, alone: bool) -> bytes:
    whose = bytes((_ALONE if alone else _GROUP,)) + _named(group)
    where = _named(place.stream) + _named(place.topic)
    return whose + where + struct.pack("<BI", 1, place.partition)


def _field(kind: int, value: bytes) -> bytes:
    return struct.pack("<BI", kind, len(value)) + value


def _named(name: str) -> bytes:
    encoded = name.encode()
    return bytes((_NAME, len(encoded))) + encoded


_OPTIONS: Final[Mapping[str, bytes]] = {
    "durability": _field(_TEXT, b"persisted"),
    "consumer_offset_durability": _field(_TEXT, b"persisted"),
    "enforce_fsync": _field(_BOOL, b"\x01"),
    "messages_required_to_save": _field(_UINT32, struct.pack("<I", 1)),
    "max_topic_size": _field(_UINT64, _UNLIMITED),
    "message_expiry": _field(_UINT64, _UNLIMITED),
}
"""A server knows the first two options, or else the next two: then it confirms messages that it has
in memory, and writes them to the disk once so many have come."""
