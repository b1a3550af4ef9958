"""A replayed message has its properties as they were, but for what would mislead a broker."""

from __future__ import annotations

from datetime import UTC, datetime

import pika
from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import Outgoing
from tenantry.broker.rabbitmq.wire import USER_HEADER, encode

TEXTS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
NAMES = TEXTS.filter(lambda name: not name.startswith(("x-", "CC", "BCC")))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | TEXTS
    | st.decimals(-1000, 1000, places=2)
    | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": TEXTS,
        "content_encoding": TEXTS,
        "headers": st.dictionaries(NAMES, VALUES, max_size=4),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": TEXTS,
        "reply_to": TEXTS,
        "expiration": TEXTS,
        "message_id": TEXTS,
        "timestamp": st.integers(0, 2**40),
        "type": TEXTS,
        "user_id": TEXTS,
        "app_id": TEXTS,
        "cluster_id": TEXTS,
    },
)


def decoded(raw: bytes) -> dict[str, object]:
    properties = pika.BasicProperties()
    properties.decode(raw)
    return {name: value for name, value in vars(properties).items() if value is not None}


def header_of(frames: bytes) -> bytes:
    """Give the properties in the frames of a message: flags and values."""
    size = int.from_bytes(frames[3:7], "big")
    start = 7 + size + 1 + 7
    length = int.from_bytes(frames[start - 4 : start], "big")
    return frames[start + 12 : start + length]


@given(wanted=PROPERTIES, deaths=st.booleans())
def test_all_properties_go_out_again_as_they_came(wanted: dict[str, object], deaths: bool) -> None:
    given = dict(wanted)
    if deaths:
        headers = dict(wanted.get("headers", {}))  # type: ignore[call-overload]
        given["headers"] = headers | {
            "x-death": [{"count": 1}],
            "x-first-death-queue": "q",
            "CC": ["elsewhere"],
        }
    raw = b"".join(pika.BasicProperties(**given).encode())  # type: ignore[arg-type]
    frames = encode(
        Outgoing(
            exchange="e",
            routing_key="k",
            body=b"",
            message_id="given",
            content_type="other",
            headers={"x-mark": 1},
            properties=raw,
        ),
        channel=1,
        frame_max=2**20,
        timestamp=0,
    )
    expected = decoded(b"".join(pika.BasicProperties(**wanted).encode()))  # type: ignore[arg-type]
    marks: dict[str, object] = {"x-mark": 1}
    if "user_id" in expected:
        marks[USER_HEADER] = expected.pop("user_id")
    expected.pop("expiration", None)
    expected["headers"] = dict(expected.get("headers", {})) | marks  # type: ignore[call-overload]
    expected["delivery_mode"] = 2
    expected.setdefault("message_id", "given")
    assert decoded(header_of(frames)) == expected
