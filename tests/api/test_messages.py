"""Messages over the real control socket."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest

from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme", topics=("events", "logs"), partitions=3)
        yield served


def test_a_message_is_published_as_json_with_its_id(api: Served) -> None:
    answer = api.control.post("/tenants/acme/messages", json={"id": "m-1", "payload": {"a": 1}})
    assert answer.status_code == 202
    assert answer.json() == {"ids": ["m-1"]}
    (sent,) = api.world.publishing.sent
    assert (sent.exchange, sent.routing_key) == ("tenant_acme_stream", "default")
    assert (sent.message_id, sent.content_type) == ("m-1", "application/json")
    assert json.loads(sent.body) == {"a": 1}


@pytest.mark.parametrize("payload", [None, True, 0, "", [], {}, "text", [1, {"payload": 2}]])
def test_any_json_value_is_a_payload(api: Served, payload: object) -> None:
    assert api.control.post("/tenants/acme/messages", json={"payload": payload}).is_success
    assert json.loads(api.world.publishing.sent[0].body) == payload


def test_a_payload_keeps_every_digit(api: Served) -> None:
    text = '{"payload": {"big": 123456789012345678901234567890, "exact": 0.10}}'
    api.control.post(
        "/tenants/acme/messages", content=text, headers={"Content-Type": "application/json"}
    )
    expected = b'{"big": 123456789012345678901234567890, "exact": 0.10}'
    assert api.world.publishing.sent[0].body == expected


def test_a_list_is_published_in_order_and_missing_ids_are_made(api: Served) -> None:
    several = [{"payload": 1}, {"payload": 2, "id": "b"}, {"payload": 3}]
    ids = api.control.post("/tenants/acme/messages", json=several).json()["ids"]
    assert ids[1] == "b"
    assert UUID(ids[0]) != UUID(ids[2])
    assert [one.message_id for one in api.world.publishing.sent] == ids
    assert [one.body for one in api.world.publishing.sent] == [b"1", b"2", b"3"]


def test_a_key_decides_the_partition(api: Served) -> None:
    body = {"payload": 1, "topic": "logs", "key": "customer-42"}
    for _ in range(3):
        api.control.post("/tenants/acme/messages", json=body)
    expected = f"logs.{zlib.crc32(b'customer-42') % 3}"
    assert {one.routing_key for one in api.world.publishing.sent} == {expected}


def test_without_a_key_partitions_take_turns(api: Served) -> None:
    api.control.post("/tenants/acme/messages", json=[{"payload": 1, "topic": "logs"}] * 6)
    keys = sorted(one.routing_key for one in api.world.publishing.sent)
    assert keys == ["logs.0", "logs.0", "logs.1", "logs.1", "logs.2", "logs.2"]


def test_one_unknown_topic_publishes_nothing_of_a_list(api: Served) -> None:
    several = [{"payload": 1}, {"payload": 2, "topic": "nope"}]
    answer = api.control.post("/tenants/acme/messages", json=several)
    assert answer.status_code == 404
    assert "'nope'" in answer.json()["detail"]
    assert api.world.publishing.sent == []


def test_a_paused_tenant_takes_messages(api: Served) -> None:
    api.control.post("/tenants/acme/pause")
    assert api.control.post("/tenants/acme/messages", json={"payload": 1}).status_code == 202


def test_stored_messages_are_shown_without_reading_their_payload(api: Served) -> None:
    exact = '{"big": 123456789012345678901234567890, "é": 0.10}'
    api.world.messages.add("acme", payload=exact, headers='{"x": 1}', topic="logs", partition=2)
    api.world.messages.add("acme", payload=None, body=b"\x00\xff", content_type="text/plain")
    api.world.messages.add("acme", payload="null")
    answer = api.control.get("/messages", params={"tenant_id": "acme"})
    assert exact in answer.text
    first, second, third = answer.json()["data"]
    assert first == {
        "id": "m-1",
        "tenant_id": "acme",
        "position": 1,
        "topic": "logs",
        "partition": 2,
        "payload": json.loads(exact),
        "content_type": "application/json",
        "headers": {"x": 1},
        "created_at": "2026-01-31T12:00:00.000000Z",
    }
    assert "payload" not in second
    assert base64.b64decode(second["body"]) == b"\x00\xff"
    assert "body" not in third
    assert third["payload"] is None


def _walk(api: Served, **params: Any) -> list[int]:
    found, cursor = [], None
    while True:
        query = params | ({"cursor": cursor} if cursor else {})
        page = api.control.get("/messages", params={"tenant_id": "acme"} | query).json()
        found += [one["position"] for one in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
def test_following_the_cursor_gives_every_message_once(api: Served, limit: int) -> None:
    for number in range(10):
        api.world.messages.add("acme", topic=("logs", "default")[number % 2])
    assert _walk(api, limit=limit) == list(range(1, 11))
    assert _walk(api, limit=limit, order="desc") == list(range(10, 0, -1))
    assert _walk(api, limit=limit, topic="logs") == [1, 3, 5, 7, 9]


def test_a_reader_follows_what_is_stored_later_from_the_last_page(api: Served) -> None:
    api.world.messages.add("acme")
    first = api.control.get("/messages", params={"tenant_id": "acme"}).json()
    assert first["next_cursor"] is None
    query: dict[str, str] = {"tenant_id": "acme", "cursor": first["follow_cursor"]}
    empty = api.control.get("/messages", params=query).json()
    assert empty["data"] == []
    api.world.messages.add("acme")
    query["cursor"] = empty["follow_cursor"]
    later = api.control.get("/messages", params=query).json()
    assert [one["position"] for one in later["data"]] == [2]


def test_a_cursor_belongs_to_its_tenant_topic_and_order(api: Served) -> None:
    api.world.create("other")
    for _ in range(3):
        api.world.messages.add("acme")
    params = {"tenant_id": "acme", "limit": "1"}
    cursor = api.control.get("/messages", params=params).json()["next_cursor"]
    same: dict[str, str] = {"tenant_id": "acme", "cursor": cursor}
    assert api.control.get("/messages", params=same).status_code == 200
    for change in ({"tenant_id": "other"}, {"topic": "logs"}, {"order": "desc"}):
        assert api.control.get("/messages", params=same | change).status_code == 400
    tenants = api.control.get("/tenants", params={"cursor": cursor})
    assert tenants.status_code == 400
    assert api.control.get("/events", params={"cursor": cursor}).status_code == 400


@pytest.mark.parametrize("topic", ["", "a.b", "%", "\0", "x" * 200])
def test_a_topic_that_can_not_be_has_no_messages(api: Served, topic: str) -> None:
    api.world.messages.add("acme")
    answer = api.control.get("/messages", params={"tenant_id": "acme", "topic": topic})
    assert (answer.status_code, answer.json()["data"]) == (200, [])


def test_retained_messages_of_a_deleted_tenant_stay_readable(api: Served) -> None:
    api.world.create("kept")
    api.world.messages.add("kept")
    assert api.control.delete("/tenants/acme").status_code == 204
    assert api.control.delete("/tenants/kept", params={"retain": "true"}).status_code == 204
    assert api.control.get("/messages", params={"tenant_id": "acme"}).status_code == 404
    kept = api.control.get("/messages", params={"tenant_id": "kept"})
    assert len(kept.json()["data"]) == 1


def test_a_misspelt_parameter_does_not_pass_as_none(api: Served) -> None:
    answer = api.control.delete("/tenants/acme", params={"retian": "true"})
    assert answer.status_code == 422
    assert api.control.get("/tenants/acme").status_code == 200


def _walk_all(api: Served, headers: dict[str, str] | None = None, **params: Any) -> list[Any]:
    found, cursor = [], None
    while True:
        query = params | ({"cursor": cursor} if cursor else {})
        page = api.control.get("/messages", params=query, headers=headers).json()
        assert page["follow_cursor"] is None
        found += [(one["tenant_id"], one["position"]) for one in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_without_a_tenant_an_admin_reads_all_of_them_in_order(api: Served, limit: int) -> None:
    for tenant_id in ("b-2", "acme", "b"):
        for number in range(3):
            api.world.messages.add(tenant_id, topic=("logs", "default")[number % 2])
    api.world.messages.rows["empty"] = []
    ordered = [(tenant_id, n) for tenant_id in ("acme", "b", "b-2") for n in (1, 2, 3)]
    assert _walk_all(api, limit=limit) == ordered
    assert _walk_all(api, limit=limit, order="desc") == ordered[::-1]
    assert _walk_all(api, limit=limit, topic="logs") == [one for one in ordered if one[1] != 2]
    assert _walk_all(api, limit=limit, topic="a.b") == []


def test_a_page_of_all_tenants_looks_at_so_many_and_leads_on(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.api.across.MOST_TENANTS", 4)
    for number in range(10):
        api.world.messages.add(f"t{number}", topic="logs" if number == 9 else "default")
    first = api.control.get("/messages", params={"topic": "logs"}).json()
    assert first["data"] == []
    assert first["next_cursor"] is not None
    assert _walk_all(api, topic="logs") == [("t9", 1)]


def test_a_cursor_of_all_tenants_is_none_of_one_nor_the_other_way_round(api: Served) -> None:
    for _ in range(3):
        api.world.messages.add("acme")
    of_all = api.control.get("/messages", params={"limit": 1}).json()["next_cursor"]
    of_one = api.control.get("/messages", params={"limit": 1, "tenant_id": "acme"}).json()
    asked = {"cursor": of_all, "tenant_id": "acme"}
    assert api.control.get("/messages", params=asked).status_code == 400
    asked = {"cursor": of_one["next_cursor"]}
    assert api.control.get("/messages", params=asked).status_code == 400


AWKWARD = [
    "order-7", "a/b", "/", "//x/", "../other", "a%2Fb", "100%", "ä\U0001f600", "a b+c",
    "?q=1#x", "line\nend\n", "\x7f", ";", "messages",
]  # fmt: skip


@pytest.mark.parametrize("message_id", AWKWARD)
def test_one_message_is_shown_by_its_id_whatever_is_in_it(api: Served, message_id: str) -> None:
    api.world.messages.add("acme", id="another")
    api.world.messages.add("acme", id=message_id, payload='{"a": 0.10}')
    answer = api.tcp.get(f"/tenants/acme/messages/{quote(message_id, safe='')}")
    assert answer.status_code == 200
    page = api.control.get("/messages", params={"tenant_id": "acme"}).json()
    assert answer.json() == page["data"][1]
    assert '{"a": 0.10}' in answer.text


def test_a_message_or_a_tenant_that_is_not_there_is_404(api: Served) -> None:
    api.world.messages.add("acme")
    for path, kind in (
        ("/tenants/acme/messages/nope", "message-not-found"),
        ("/tenants/acme/messages/a%00b", "message-not-found"),
        ("/tenants/acme/messages/%ff", "message-not-found"),
        ("/tenants/nobody/messages/m-1", "tenant-not-found"),
        ("/tenants/NO-ID/messages/m-1", "tenant-not-found"),
    ):
        answer = api.control.get(path)
        assert (answer.status_code, answer.json()["type"].rsplit(":")[-1]) == (404, kind), path
