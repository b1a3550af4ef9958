"""CloudEvents over HTTP: structured, in batches and in binary mode, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.port import Outgoing
from tests.api.serving import Served, World, serving

EVENT: dict[str, Any] = {
    "specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created",
}  # fmt: skip
BINARY = {f"ce-{name}": value for name, value in EVENT.items()}
STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
PATH = "/tenants/acme/messages"


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme", topics=("events",), partitions=8)
        yield served


def sent(api: Served, status: int = 202, **call: Any) -> list[Outgoing]:
    """Publish by the front and by the control socket; give what both have sent."""
    api.world.publishing.sent.clear()
    first = api.tcp.post(PATH, **call)
    by_front = list(api.world.publishing.sent)
    api.world.publishing.sent.clear()
    second = api.control.post(PATH, **call)
    assert (first.status_code, second.status_code) == (status, status), first.text
    if status == 202:
        assert first.json() == second.json() == {"ids": [one.message_id for one in by_front]}
    else:
        assert first.json()["detail"] == second.json()["detail"]
    assert by_front == api.world.publishing.sent
    return by_front


def refused(api: Served, status: int = 422, **call: Any) -> str:
    assert not sent(api, status, **call)
    detail: str = api.control.post(PATH, **call).json()["detail"]
    return detail


def test_a_structured_event_goes_as_it_came(api: Served) -> None:
    body = b'{"specversion":"1.0","id":"7","source":"/shop","type":"t", "data":{"n":1.10}} '
    (one,) = sent(api, content=body, headers=STRUCTURED)
    assert one == Outgoing(
        exchange="tenant_acme_stream", routing_key="default", body=body, message_id="/shop 7",
        content_type="application/cloudevents+json", headers=None,
    )  # fmt: skip


def test_events_of_a_batch_go_one_by_one_each_as_it_came(api: Served) -> None:
    texts = [json.dumps(EVENT | {"id": str(n), "data": [1.50, n]}) for n in range(3)]
    body = "[ " + " , ".join(texts) + "]\n"
    found = sent(api, content=body.encode(), headers=BATCH)
    assert [one.body.decode() for one in found] == texts
    assert [one.message_id for one in found] == ["/shop 0", "/shop 1", "/shop 2"]
    assert {one.content_type for one in found} == {"application/cloudevents+json"}
    assert sent(api, content=b"[]", headers=BATCH) == []


def test_an_event_in_binary_mode_has_its_attributes_as_headers(api: Served) -> None:
    told = {"ce-subject": '"a \\"b\\""', "ce-ext": "Euro%20%E2%82%AC", "content-type": "text/plain"}
    (one,) = sent(api, content=b"\x00\xff", headers=BINARY | told)
    assert (one.body, one.content_type, one.message_id) == (b"\x00\xff", "text/plain", "/shop 7")
    assert one.headers == {f"cloudEvents:{name}": value for name, value in EVENT.items()} | {
        "cloudEvents:subject": 'a "b"',
        "cloudEvents:ext": "Euro €",
    }
    (one,) = sent(
        api, content=b'{"n": 1.10}', headers=BINARY | {"content-type": "application/json"}
    )
    assert (one.body, one.content_type) == (b'{"n": 1.10}', "application/json")
    (one,) = sent(api, content=b"[1]", headers=BINARY)
    assert (one.body, one.content_type) == (b"[1]", None)
    (one,) = sent(api, headers=BINARY)
    assert (one.body, one.content_type) == (b"", "application/octet-stream")


def test_topic_and_key_are_parameters_and_the_partition_key_an_extension(api: Served) -> None:
    def keys(**call: Any) -> list[str]:
        return [one.routing_key for one in sent(api, **call)]

    (by_key,) = keys(content=b"1", headers=BINARY, params={"topic": "events", "key": "k"})
    by_extension = BINARY | {"ce-partitionkey": "k"}
    assert keys(content=b"1", headers=by_extension, params={"topic": "events"}) == [by_key]
    event = EVENT | {"partitionkey": "k"}
    assert keys(json=[event, event], headers=BATCH, params={"topic": "events"}) == [by_key] * 2
    assert "no topic 'nowhere'" in refused(
        api, 404, json=EVENT, headers=STRUCTURED, params={"topic": "nowhere"}
    )
    for parameters, said in (
        ({"partition": "1"}, "partition: there is no such parameter"),
        ({"topic": ["a", "b"]}, "topic: is given twice"),
        ({"key": "x" * 1025}, "key: must have 1024 characters"),
    ):
        assert said in refused(api, json=EVENT, headers=STRUCTURED, params=parameters)


@pytest.mark.parametrize(
    ("status", "call", "said"),
    [
        (422, {"json": {}, "headers": STRUCTURED}, "specversion: is required"),
        (422, {"json": EVENT | {"specversion": "0.3"}, "headers": STRUCTURED}, "must be 1.0"),
        (422, {"json": [EVENT, EVENT | {"source": "a b"}], "headers": BATCH}, "[1].source: is no"),
        (422, {"json": EVENT, "headers": BATCH}, "a batch is a JSON array"),
        (422, {"json": [EVENT] * 1001, "headers": BATCH}, "1000 events at most"),
        (422, {"json": EVENT | {"partitionkey": 1}, "headers": STRUCTURED}, "partitionkey: must"),
        (400, {"content": b"{", "headers": STRUCTURED}, "not JSON"),
        (400, {"content": b"[" * 9999, "headers": BATCH}, "not JSON"),
        (415, {"content": b"<a/>", "headers": {"content-type": "application/cloudevents+xml"}},
         "cloudevents-batch+json are understood"),
        (415, {"content": b"x", "headers": BINARY | {"content-encoding": "gzip"}}, "Content-Encod"),
        (422, {"content": b"1", "headers": {"ce-type": "t"}}, "specversion: is required"),
        (422, {"content": b"1", "headers": BINARY | {"ce-specversion": "0.3"}}, "must be 1.0"),
        (422, {"content": b"1", "headers": BINARY | {"ce-datacontenttype": "a/b"}}, "Content-Type"),
        (422, {"content": b"1", "headers": BINARY | {"ce-x": "%C0%A0"}}, "x: what is not ASCII"),
        (422, {"content": b"1", "headers": BINARY | {"ce-id": "%00"}}, "id: has a control"),
        (422, {"content": b"1", "headers": BINARY | {"ce-a-b": "x"}}, "a-b: is no name"),
        (422, {"content": b"1", "headers": [*BINARY.items(), ("CE-Id", "8")]}, "id: is given tw"),
        (422, {"content": b"1", "headers": BINARY | {"content-type": "json"}}, "datacontenttype"),
        (400, {"content": b"{", "headers": BINARY}, "not JSON"),
        (400, {"content": b"", "headers": BINARY | {"content-type": "application/json"}}, "JSON"),
        (422, {"json": EVENT, "headers": STRUCTURED | {"idempotency-key": "a b"}}, "Idempotency"),
    ],
)  # fmt: skip
def test_an_event_that_is_none_is_refused_by_name_and_not_sent(
    api: Served, status: int, call: dict[str, Any], said: str
) -> None:
    assert said in refused(api, status, **call)


def test_a_key_of_a_call_belongs_to_its_event(api: Served) -> None:
    keyed = {"idempotency-key": "k-1"}
    (one,) = sent(api, content=b"1", headers=BINARY | keyed)
    assert one.message_id == "/shop 7"
    other = BINARY | keyed | {"ce-id": "8"}
    assert "used with another body" in refused(api, content=b"1", headers=other)


def test_events_are_let_in_as_messages_are() -> None:
    with serving(World(jwt_secret="s" * 64)) as api:
        api.world.create("acme")
        assert api.tcp.post(PATH, json=EVENT, headers=STRUCTURED).status_code == 401
        assert not api.world.publishing.sent


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(
    headers=st.dictionaries(st.sampled_from([*BINARY, "ce-x", "content-type"]), _TEXT, max_size=6),
    body=st.binary(max_size=40) | st.builds(lambda one: json.dumps(one).encode(), st.just([EVENT])),
)
def test_whatever_is_sent_it_goes_as_it_is_or_is_refused(
    api: Served, headers: dict[str, str], body: bytes
) -> None:
    headers = {**{name: value.strip() for name, value in headers.items()}, "ce-type": "t"}
    api.world.publishing.sent.clear()
    answer = api.tcp.post(PATH, content=body, headers=headers)
    if answer.status_code == 202:
        assert [one.body for one in api.world.publishing.sent] in (
            [body],
            [json.dumps(EVENT).encode()],
        )
    else:
        assert answer.status_code in (400, 415, 422)
        assert answer.json()["detail"]
        assert not api.world.publishing.sent
