"""Messages on the wire, read back with pika's own decoder."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pika.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import Outgoing
from tenantry.broker.rabbitmq.wire import UnencodableError, encode

MESSAGE = Outgoing(
    exchange="tenant_acme_stream",
    routing_key="events.0",
    body=b"{}",
    message_id="m-1",
    content_type="application/json",
    headers={"a": "b"},
)


def decoded(message: Outgoing, frame_max: int = 131_072) -> tuple[object, object, bytes]:
    data = encode(message, channel=1, frame_max=frame_max, timestamp=1_700_000_000)
    frames = []
    while data:
        size, frame = pika.frame.decode_frame(data)
        assert size <= frame_max
        assert frame.channel_number == 1
        frames.append(frame)
        data = data[size:]
    method, header, *pieces = frames
    body = b"".join(piece.fragment for piece in pieces)
    assert header.body_size == len(body)
    return method.method, header.properties, body


def test_pika_reads_what_is_written() -> None:
    method, properties, body = decoded(MESSAGE)
    assert (method.exchange, method.routing_key) == ("tenant_acme_stream", "events.0")
    assert method.mandatory
    assert not method.immediate
    assert properties.message_id == "m-1"
    assert properties.content_type == "application/json"
    assert properties.headers == {"a": "b"}
    assert properties.delivery_mode == 2
    assert properties.timestamp == 1_700_000_000
    assert body == b"{}"


def test_what_is_not_given_is_not_sent() -> None:
    bare = replace(MESSAGE, message_id=None, content_type=None, headers=None, body=b"")
    _, properties, body = decoded(bare)
    assert properties.message_id is None
    assert properties.content_type is None
    assert properties.headers is None
    assert body == b""


def test_a_long_body_is_cut_into_frames_the_broker_takes() -> None:
    long = replace(MESSAGE, body=bytes(range(256)) * 1_000)
    assert decoded(long, 4_096)[2] == long.body


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", max_size=10), JSON, max_size=4))
def test_headers_may_hold_what_json_holds(headers: dict[str, object]) -> None:
    assert decoded(replace(MESSAGE, headers=headers))[1].headers == headers


def test_headers_may_hold_fractions_bytes_and_times() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    headers = {"fraction": 2.0, "bytes": b"\x00\xff", "time": at}
    assert decoded(replace(MESSAGE, headers=headers))[1].headers == headers


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (replace(MESSAGE, message_id="x" * 256), "message id is longer than 255 bytes"),
        (replace(MESSAGE, routing_key="é" * 128), "routing key is longer"),
        (replace(MESSAGE, headers={"x" * 256: 1}), "header's name is longer"),
        (replace(MESSAGE, headers={"x": 2**63}), "more than 64 bits"),
        (replace(MESSAGE, headers={"x": object()}), "of type object"),
        (replace(MESSAGE, headers={"x": "\ud800"}), "not valid Unicode"),
        (replace(MESSAGE, headers={"x": "y" * 200_000}), "headers take more than"),
    ],
)
def test_what_amqp_can_not_say_is_refused_without_its_value(
    message: Outgoing, problem: str
) -> None:
    with pytest.raises(UnencodableError, match=problem) as caught:
        encode(message, channel=1, frame_max=131_072, timestamp=0)
    assert "xxx" not in str(caught.value)
