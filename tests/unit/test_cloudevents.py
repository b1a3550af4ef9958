"""Which messages are CloudEvents, by which id they are known, and what is put beside them."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.handlers.message import Message
from tenantry.messages import cloudevents
from tenantry.messages.cloudevents import InvalidEventError, understood
from tenantry.messages.encoding import headers_json
from tenantry.messages.headers import MOST_BYTES, JsonHeaders
from tenantry.messages.port import Incoming
from tenantry.messages.validation import may_be_event
from tests.fakes.messages import incoming

EVENT = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created"}
STRUCTURED = "application/cloudevents+json"


def structured(body: object, content_type: str = STRUCTURED, **more: Any) -> Incoming:
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Incoming(None, "default", 0, written, content_type, None, None)._replace(**more)


def binary(prefix: str = "cloudEvents:", **attributes: Any) -> Incoming:
    headers = {f"{prefix}{name}": value for name, value in (EVENT | attributes).items()}
    return incoming("x", b"{}", headers=headers)._replace(id=None)


@pytest.mark.parametrize("prefix", ["cloudEvents:", "cloudEvents_"])
def test_attributes_among_headers_make_an_event_that_is_known_by_its_own_id(prefix: str) -> None:
    message = binary(prefix, time=datetime(2026, 1, 1, tzinfo=UTC), count=7, flag=True, raw=b"\xff")
    assert may_be_event(message)
    stored = understood(message)
    assert stored == message._replace(id="/shop 7")
    # An id that its sender has given is the message's.
    assert understood(message._replace(id="own")).id == "own"


def test_an_event_in_the_body_is_stored_as_it_came_and_its_attributes_beside_it() -> None:
    body = (
        b' {"specversion":"1.0" , "id":"7","source":"/shop","type":"t","n":1, "x":null,"data":1.10}'
    )
    message = structured(body, "Application/CloudEvents+JSON; charset=utf-8")
    stored = understood(message)
    assert (stored.body, stored.content_type) == (body, message.content_type)
    assert stored.id == "/shop 7"
    assert stored.headers == {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": "7",
        "cloudEvents:source": "/shop",
        "cloudEvents:type": "t",
        "cloudEvents:n": 1,
    }


def test_what_a_sender_has_put_beside_its_event_stays() -> None:
    sent = {"cloudEvents_type": "other", "a": 1.50}
    stored = understood(structured(EVENT, headers=sent))
    assert stored.headers == sent | {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": "7",
        "cloudEvents:source": "/shop",
    }
    as_text = JsonHeaders('{"a": 1.50, "deep": {"b": 12345678901234567890123}}')
    added = understood(structured(EVENT, headers=as_text)).headers
    assert added is not None
    assert b"12345678901234567890123" in headers_json(added)
    assert added["cloudEvents:type"] == "order.created"


@pytest.mark.parametrize(
    "message",
    [
        incoming("1", b"{}"),
        binary(specversion="0.3"),
        binary(specversion=None),
        binary(type=None),  # not all of them: headers like any others
        structured({**EVENT, "specversion": "2.0"}),
        structured(b"<xml/>", "application/cloudevents+xml"),
        structured(b"[]", "application/cloudevents-batch+json"),
        structured(b"\x1f\x8b", headers={"content-encoding": "gzip"}),
        structured(b"anything", "application/cloud"),
    ],
)
def test_what_is_no_event_or_of_another_kind_is_left_as_it_is(message: Incoming) -> None:
    assert understood(message) is message


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("id", ""), ("id", 7), ("id", "a\x00b"), ("id", "a\nb"), ("id", "\x85"), ("id", "\ufffe"),
        ("source", ""), ("source", "my shop"), ("source", "/a%zz"), ("source", "a\u2003b"),
        ("source", "<x>"), ("type", ""), ("type", True), ("subject", ""), ("subject", 1.5),
        ("time", "yesterday"), ("time", "2026-02-30T00:00:00Z"), ("time", "2026-01-01 00:00:00Z"),
        ("time", "2026-01-01T00:00:00"), ("time", 1), ("dataschema", "/relative"),
        ("datacontenttype", "json"), ("count", 2**31), ("count", 1.5), ("Camel", "x"),
        ("has_bar", "x"), ("", "x"), ("é", "x"), ("list", [1]), ("object", {}),
        ("long" * 100, "x"),
    ],
)  # fmt: skip
def test_what_says_that_it_is_an_event_and_is_none_is_told_by_attribute(
    attribute: str, value: Any
) -> None:
    for message in (structured(EVENT | {attribute: value}), binary(**{attribute: value})):
        with pytest.raises(InvalidEventError) as raised:
            understood(message)
        assert raised.value.attribute == attribute[: cloudevents.LONGEST_NAME]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "specversion: is required"),
        (json.dumps({"specversion": 1}).encode(), "id: is required"),
        (json.dumps(EVENT | {"specversion": 1}).encode(), "specversion"),
        (json.dumps(EVENT | {"source": None}).encode(), "source: is required"),
        (json.dumps(EVENT | {"data": 1, "data_base64": "eA=="}).encode(), "data_base64"),
        (json.dumps(EVENT | {"data_base64": "é"}).encode(), "data_base64"),
        (json.dumps(EVENT | {"data_base64": 1}).encode(), "data_base64"),
        (
            json.dumps(EVENT | {"subject": "x" * MOST_BYTES}).encode(),
            f"more than {MOST_BYTES} bytes",
        ),
        (json.dumps(EVENT | {"source": "%41" * 500_000}).encode(), f"more than {MOST_BYTES} bytes"),
        (json.dumps(EVENT | {f"a{n}": n for n in range(20_000)}).encode(), "more than"),
    ],
)
def test_a_body_that_is_no_event_is_told_why(body: bytes, said: str) -> None:
    with pytest.raises(InvalidEventError, match=said):
        understood(structured(body))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("source", "urn:uuid:6e8bc430"), ("source", "//host/p?q#f"), ("source", "mailto:a@b"),
        ("source", "/münchen"), ("time", "2026-12-31T23:59:60Z"), ("time", "2026-01-01t00:00:00z"),
        ("time", "2026-01-01T00:00:00.123456789+02:00"), ("dataschema", "https://s.test/a"),
        ("datacontenttype", "text/plain; charset=utf-8"), ("count", -(2**31)), ("flag", False),
        ("id", "ä €"), ("nameofmorethantwentycharacters", "x"),
    ],
)  # fmt: skip
def test_what_the_specification_allows_is_taken(attribute: str, value: Any) -> None:
    assert understood(structured(EVENT | {attribute: value})).id
    assert understood(binary(**{attribute: value})).id


def test_one_that_had_no_id_before_it_was_replayed_is_known_by_its_own_again() -> None:
    message = binary()._replace(id="letter")
    assert message.headers is not None
    again = message._replace(headers={**message.headers, "x-tenantry-replay": "letter"})
    assert understood(again).id == "/shop 7"
    assert understood(again._replace(id="own")).id == "own"


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1)
_SOURCE = st.text("abc/:#?", min_size=1, max_size=300)


@given(st.lists(st.tuples(_SOURCE, _TEXT), min_size=2, max_size=2, unique=True))
def test_no_two_events_have_one_id(events: list[tuple[str, str]]) -> None:
    first, second = (
        cloudevents.message_id({"source": source, "id": identity}) for source, identity in events
    )
    assert first != second
    assert max(len(first.encode()), len(second.encode())) <= cloudevents.LONGEST_ID


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from([*EVENT, "subject", "time", "dataschema", "data", "data_base64", "ext"])


_OBJECTS = st.dictionaries(_NAMES | st.text(max_size=5), _JSON | st.just("1.0"), max_size=8)


@given(_OBJECTS | _OBJECTS.map(lambda one: one | EVENT) | _JSON)
def test_whatever_is_in_a_body_it_is_an_event_or_told_why_and_is_never_changed(body: Any) -> None:
    messages = [structured(json.dumps(body).encode(errors="surrogatepass"))]
    if isinstance(body, dict):
        headers: dict[str, object] = {f"cloudEvents:{name}": one for name, one in body.items()}
        messages.append(incoming(None, b"{}", headers=headers))
    for message in messages:
        with suppress(InvalidEventError):
            stored = understood(message)
            assert stored._replace(id=None, headers=message.headers) == message
            if stored is not message:
                assert stored.id
                assert headers_json(stored.headers or {})


def test_a_handler_sees_an_event_by_its_attributes() -> None:
    def handled(headers: dict[str, object], content_type: str | None) -> Message:
        return Message(
            id="1", tenant_id="acme", topic="t", partition=0, payload=None, body=b"",
            content_type=content_type, headers=headers, attempt=1,
        )  # fmt: skip

    named = {f"cloudEvents_{name}": value for name, value in EVENT.items()}
    assert handled(named, "text/plain").cloudevent == EVENT | {"datacontenttype": "text/plain"}
    assert handled(named, STRUCTURED).cloudevent == EVENT
    assert handled({"cloudEvents:specversion": "1.0"}, None).cloudevent is None
    assert handled({}, None).cloudevent is None
