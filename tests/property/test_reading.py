"""Deliveries read straight off the wire are what pika would have read, however the bytes come."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pika
from hypothesis import given
from hypothesis import strategies as st
from pika import data as pika_data
from pika import frame, spec
from pika.connection import Connection

from tenantry.broker.port import Delivery
from tenantry.broker.rabbitmq.reading import (
    Gate,
    MalformedTableError,
    ReadingConnection,
    _acks,
    _nacks,
    read_table,
)
from tenantry.messages import validation
from tenantry.messages.encoding import LAST_MS
from tenantry.messages.headers import REPLAY_HEADER, REPLAYS_HEADER

short_texts = st.text(max_size=20)
header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_texts, inner, max_size=3),
    max_leaves=8,
)
properties = st.builds(
    pika.BasicProperties,
    content_type=st.none() | short_texts,
    content_encoding=st.none() | short_texts,
    headers=st.none() | st.dictionaries(short_texts, header_values, max_size=4),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short_texts,
    reply_to=st.none() | short_texts,
    expiration=st.none() | short_texts,
    message_id=st.none() | short_texts,
    timestamp=st.none() | st.integers(0, 2**63 - 1),
    type=st.none() | short_texts,
    user_id=st.none() | short_texts,
    app_id=st.none() | short_texts,
)
deliveries = st.lists(
    st.tuples(st.integers(1, 3), st.booleans(), properties, st.binary(max_size=300)), max_size=8
)


class Reader(ReadingConnection):
    """The reading half, without a socket."""

    def __init__(self, gates: dict[int, Gate] | None = None) -> None:
        self.gates = gates or {}
        self._receivers = {}
        self._partial = {}
        self._content_types = {}
        self._frame_buffer = b""
        self.bytes_received = 0
        self.connection_state = Connection.CONNECTION_OPEN
        self.others: list[Any] = []
        self.taken: list[tuple[int, Delivery]] = []
        for channel in (1, 2, 3):
            take = self._taker(channel)
            receiver = (f"topic-{channel}", channel, take, self.gates.get(channel))
            self.receive(channel, f"tag-{channel}", receiver)

    def _taker(self, channel: int) -> Any:
        return lambda delivery: self.taken.append((channel, delivery))

    def _process_frame(self, frame_value: Any) -> None:
        self.others.append(frame_value)


def wire(channel: int, tag: int, redelivered: bool, props: Any, body: bytes, piece: int) -> bytes:
    method = spec.Basic.Deliver(f"tag-{channel}", tag, redelivered, "exchange", "routing.key")
    frames = [frame.Method(channel, method), frame.Header(channel, len(body), props)]
    frames += [
        frame.Body(channel, body[start : start + piece]) for start in range(0, len(body), piece)
    ]
    return b"".join(one.marshal() for one in frames)


@given(given_deliveries=deliveries, piece=st.integers(1, 200), cuts=st.lists(st.integers(0, 4000)))
def test_every_delivery_is_read_whatever_its_frames_and_wherever_the_bytes_are_cut(
    given_deliveries: list[tuple[int, bool, Any, bytes]], piece: int, cuts: list[int]
) -> None:
    heartbeat = frame.Heartbeat().marshal()
    stream = heartbeat.join(
        wire(channel, tag, redelivered, props, body, piece)
        for tag, (channel, redelivered, props, body) in enumerate(given_deliveries, start=1)
    )
    reader = Reader()
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in pairwise(bounds):
        reader._on_data_available(stream[start:end])
    assert reader.bytes_received == len(stream)
    assert len(reader.taken) == len(given_deliveries)
    for tag, ((channel, redelivered, props, body), (at, read)) in enumerate(
        zip(given_deliveries, reader.taken, strict=True), start=1
    ):
        message = read.message
        assert at == channel
        assert (read.tag, read.redelivered) == (tag, redelivered)
        assert (message.topic, message.partition) == (f"topic-{channel}", channel)
        assert message.body == body
        assert message.id == (props.message_id or None)
        assert message.content_type == props.content_type
        assert message.headers == with_properties(as_pika_reads(props.headers), props)
        if "timestamp_in_ms" not in (props.headers or {}):
            expected = None if props.timestamp is None else props.timestamp * 1000
            assert message.published_at_ms == (
                expected if expected is None or expected <= LAST_MS else None
            )


class OddGate:
    """Lets every other delivery in."""

    def __init__(self) -> None:
        self.asked = 0
        self.gone: list[int] = []

    def admit(self, body: int, table: int) -> bool:
        self.asked += 1
        return self.asked % 2 == 1

    def dropped(self, tag: int) -> None:
        self.gone.append(tag)


@given(given_deliveries=deliveries, piece=st.integers(1, 200), cuts=st.lists(st.integers(0, 4000)))
def test_what_is_not_let_in_passes_and_leaves_its_neighbours_whole(
    given_deliveries: list[tuple[int, bool, Any, bytes]], piece: int, cuts: list[int]
) -> None:
    stream = b"".join(
        wire(1, tag, redelivered, props, body, piece)
        for tag, (_, redelivered, props, body) in enumerate(given_deliveries, start=1)
    )
    gate = OddGate()
    reader = Reader({1: gate})
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, end in pairwise(bounds):
        reader._on_data_available(stream[start:end])
    tags = range(1, len(given_deliveries) + 1)
    assert [read.tag for _, read in reader.taken] == list(tags[::2])
    assert gate.gone == list(tags[1::2])
    bodies = [body for _, _, _, body in given_deliveries]
    assert [read.message.body for _, read in reader.taken] == bodies[::2]


def test_a_channel_that_is_given_up_amid_a_body_leaves_the_others_readable() -> None:
    reader = Reader()
    props = pika.BasicProperties(message_id="m")
    first, second = wire(1, 1, False, props, b"x" * 100, 10), wire(2, 1, False, props, b"y", 10)
    reader._on_data_available(first[:120])
    reader.forget(1)
    reader._on_data_available(first[120:] + second)
    assert [read.message.body for _, read in reader.taken] == [b"y"]
    assert reader.others == []


def test_headers_beyond_the_limit_are_not_read_but_for_what_a_replay_is_known_by() -> None:
    reader = Reader()
    headers = {f"h{number}": "x" * 1000 for number in range(70)}
    for props in (
        pika.BasicProperties(message_id="large", headers=headers),
        pika.BasicProperties(headers=headers | {REPLAY_HEADER: "letter", REPLAYS_HEADER: 2}),
    ):
        reader._on_data_available(wire(1, 1, False, props, b"{}", 10))
    plain, replay = (read.message for _, read in reader.taken)
    assert plain.headers == {}
    assert replay.headers == {REPLAY_HEADER: "letter", REPLAYS_HEADER: 2}
    for message in (plain, replay):
        flaw = validation.flaw(message, 1000)
        assert flaw is not None
        assert flaw[0] == "headers_too_large"


def test_properties_that_can_not_be_read_are_one_messages_own_trouble() -> None:
    reader = Reader()
    good = wire(1, 1, False, pika.BasicProperties(message_id="m"), b"good", 10)
    broken = bytearray(wire(1, 1, False, pika.BasicProperties(message_id="m"), b"bad", 10))
    # The length of the id: it now ends beyond the frame, and the data.
    broken[broken.index(b"\x01m")] = 255
    cut = broken.index(b"\xce", broken.index(b"\xffm")) + 1
    reader._on_data_available(bytes(broken[:cut]))
    reader._on_data_available(bytes(broken[cut:]) + good)
    assert [read.message.body for _, read in reader.taken] == [b"bad", b"good"]


@given(st.integers(1, 65535), st.lists(st.integers(1, 2**63 - 1)))
def test_what_is_given_back_goes_out_as_pika_would_write_it(channel: int, tags: list[int]) -> None:
    frames = [frame.Method(channel, spec.Basic.Nack(tag, False, True)) for tag in tags]
    assert _nacks(channel, tags) == b"".join(one.marshal() for one in frames)


def with_properties(headers: Any, props: Any) -> Any:
    """Headers, and beside them the properties that have no column."""
    kept = {"content-encoding": props.content_encoding, "correlation-id": props.correlation_id}
    kept = {name: value for name, value in kept.items() if value}
    return kept | (headers or {}) if kept else headers


def as_pika_reads(headers: Any) -> Any:
    """The headers after a trip through pika, times with their zone."""
    if headers is None:
        return None
    pieces: list[bytes] = []
    pika_data.encode_table(pieces, headers)
    table, _ = pika_data.decode_table(b"".join(pieces), 0)
    return with_zones(table)


def with_zones(value: Any) -> Any:
    match value:
        case datetime():
            return value.replace(tzinfo=UTC)
        case dict():
            return {key: with_zones(item) for key, item in value.items()}
        case list():
            return [with_zones(item) for item in value]
        case _:
            return value


@given(channel=st.integers(1, 65535), tags=st.lists(st.integers(1, 2**64 - 1)))
def test_single_acks_are_written_as_pika_writes_them(channel: int, tags: list[int]) -> None:
    expected = [frame.Method(channel, spec.Basic.Ack(tag)).marshal() for tag in tags]
    assert _acks(channel, tags) == b"".join(expected)


def test_deliveries_of_channels_may_come_interleaved() -> None:
    reader = Reader()
    props = pika.BasicProperties(message_id="m")
    first = [wire(1, 1, False, props, b"ab", 1), wire(2, 1, False, props, b"cd", 1)]
    frames = [split(stream) for stream in first]
    for pair in zip(*frames, strict=True):
        reader._on_data_available(b"".join(pair))
    assert [(channel, one.message.body) for channel, one in reader.taken] == [
        (1, b"ab"),
        (2, b"cd"),
    ]


def split(stream: bytes) -> list[bytes]:
    frames = []
    while stream:
        size = struct.unpack_from(">BHI", stream)[2] + 8
        frames.append(stream[:size])
        stream = stream[size:]
    return frames


def test_what_is_no_delivery_is_left_to_pika() -> None:
    reader = Reader()
    ok = frame.Method(1, spec.Basic.QosOk()).marshal()
    reader._on_data_available(ok + frame.Heartbeat().marshal())
    assert [type(one) for one in reader.others] == [frame.Method, frame.Heartbeat]


def test_a_delivery_of_a_forgotten_channel_reaches_nobody() -> None:
    reader = Reader()
    stream = split(wire(1, 1, False, pika.BasicProperties(), b"body", 100))
    reader._on_data_available(stream[0])
    reader.forget(1)
    take = reader._taker(1)
    reader.receive(1, "tag-1", ("new", 0, take, None))
    later = wire(1, 1, False, pika.BasicProperties(), b"new", 100)
    reader._on_data_available(later)
    assert [one.message.body for _, one in reader.taken] == [b"new"]


@given(st.binary(max_size=80))
def test_a_table_of_any_bytes_is_read_or_refused(data: bytes) -> None:
    try:
        _, end = read_table(data, 0)
    except MalformedTableError:
        return
    assert end <= len(data)


def test_headers_that_are_no_table_are_kept_as_they_came() -> None:
    reader = Reader()
    props = pika.BasicProperties(headers={"k": 1}, message_id="after")
    stream = wire(1, 1, False, props, b"{}", 100).replace(b"\x01kI", b"\x01k?")
    reader._on_data_available(stream)
    ((_, read),) = reader.taken
    assert read.message.id == "after"
    assert read.message.headers == {"undecodable": b"\x01k?\x00\x00\x00\x01".hex()}


def test_fractions_in_headers_keep_their_value() -> None:
    raw = b"\x01f" + b"f" + struct.pack(">f", 1.5) + b"\x01d" + b"d" + struct.pack(">d", math.pi)
    raw += b"\x01D" + b"D\x02" + struct.pack(">i", -150)
    table, _ = read_table(struct.pack(">I", len(raw)) + raw, 0)
    assert table == {"f": 1.5, "d": math.pi, "D": Decimal("-1.50")}
