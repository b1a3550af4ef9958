"""A tenant's messages on the page as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest

from tenantry.api.streams import Streams
from tenantry.http.tokens import Scope
from tenantry.page.messages import EACH_SECOND, LARGEST_EVENT, Events
from tests.api.event_stream import EventStream
from tests.api.page import Browser, Written, token
from tests.api.serving import SECRET, Served, World, serving
from tests.api.test_nodes import two_nodes
from tests.waiting import eventually

EVIL = "<script>alert(1)</script>'\"&"


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        for tenant_id in ("acme", "other"):
            served.world.create(tenant_id, topics=("logs",))
        yield served


class Followed(EventStream):
    """The blocks of a tail, one by one."""

    def told(self) -> dict[str, Any]:
        while "data" not in (block := self.block()):
            pass
        told: dict[str, Any] = json.loads(block["data"])
        return told | {"id": block["id"]}


@contextmanager
def following(api: Served, session: str | None, **params: str) -> Iterator[Followed]:
    cookie = {} if session is None else {"Cookie": f"tenantry_session={session}"}
    query = {"tenant_id": "acme"} | params
    with api.tcp.stream("GET", "/ui/tail", params=query, headers=cookie) as answer:
        yield Followed(answer)


def store(api: Served, **fields: Any) -> None:
    api.world.messages.add("acme", **fields)
    api.world.control.stored["acme"] = api.world.control.stored.get("acme", 0) + 1


def test_messages_are_followed_as_text_and_taken_up_where_they_were_left(api: Served) -> None:
    with following(api, token()) as tail:
        assert tail.told()["rows"] == []
        store(api, id=EVIL, payload='{"n": 12345678901234567890123, "s": "<b>"}', topic="logs")
        told = tail.told()
        assert tail.answer.headers["content-type"].startswith("text/event-stream")
        assert "unsafe" not in tail.answer.headers["content-security-policy"]
        assert tail.answer.headers["cache-control"] == "no-store"
    assert told["left_out"] == 0
    (row,) = told["rows"]
    assert row["text"] == '{"n": 12345678901234567890123, "s": "<b>"}'
    assert (row["id"], row["topic"], row["position"]) == (EVIL, "logs / 0", "1")
    assert httpx.URL(row["link"]).params["id"] == EVIL
    store(api)
    with following(api, token(), cursor=told["id"]) as tail:
        seen: list[Any] = []
        while not seen:
            seen = tail.told()["rows"]
    assert [one["position"] for one in seen] == ["2"]
    api.world.messages.rows.clear()


@pytest.mark.parametrize(
    ("tenant_id", "scope", "payloads", "status"),
    [
        (None, Scope.READ, False, 403),
        (None, Scope.READ, True, 200),
        (None, Scope.OPERATE, False, 403),
        ("acme", Scope.TENANT, False, 200),
        ("other", Scope.TENANT, False, 403),
        (None, None, False, 401),
    ],
)
def test_who_may_not_see_payloads_follows_nothing(
    api: Served, tenant_id: str | None, scope: Scope | None, status: int, *, payloads: bool
) -> None:
    session = None if scope is None else token(tenant_id, scope, payloads=payloads)
    with following(api, session) as tail:
        assert tail.answer.status_code == status
        if status != 200:
            assert tail.answer.read() == b""


def test_messages_of_a_tenant_of_another_node_are_followed_there() -> None:
    with two_nodes(by_socket=True) as nodes, following(nodes.one, token()) as tail:
        tail.told()
        store(nodes.two, id="there")
        seen: list[Any] = []
        while not seen:
            seen = tail.told()["rows"]
        assert [one["id"] for one in seen] == ["there"]


def test_a_tail_ends_with_its_right_and_gives_its_place_back(api: Served) -> None:
    streams: Streams = api.app.state.services.streams
    longest, streams._longest = streams._longest, 0.05
    try:
        with following(api, token()) as tail:
            tail.told()
            with pytest.raises(EOFError):
                tail.told()
    finally:
        streams._longest = longest
    with following(api, token()) as tail:
        tail.told()
    eventually(lambda: streams.open == 0, what="every place given back")


def test_a_tail_lasts_longer_than_a_request_may() -> None:
    with serving(World(jwt_secret=SECRET, request_timeout=0.1)) as api:
        api.world.create("acme")
        api.app.state.services.streams._heartbeat = 0.02
        with following(api, token()) as tail:
            tail.told()
            assert all("" in tail.block() for _ in range(12))


def test_what_can_not_be_followed_is_told_by_its_status_alone(api: Served) -> None:
    for params, status in (
        ({"tenant_id": "nobody"}, 404), ({"tenant_id": ""}, 422), ({"cursor": "x"}, 400),
    ):  # fmt: skip
        with following(api, token(), **params) as tail:
            assert (tail.answer.status_code, tail.answer.read()) == (status, b"")


def test_the_newest_messages_can_be_followed_by_a_script_alone(api: Served) -> None:
    admin, path = Browser(api, token()), "/ui/tenants/acme/messages"

    def tails(**params: str) -> list[str | None]:
        written = Written(admin.get(path, **params).text)
        return [given["data-tail"] for _, given in written.elements if "data-tail" in given]

    assert tails() == ["../../../ui/tail?tenant_id=acme"]
    assert tails(topic="a&b") == ["../../../ui/tail?tenant_id=acme&topic=a%26b"]
    assert tails(order="asc") == []
    place = next(
        given for _, given in Written(admin.get(path).text).elements if "data-tail" in given
    )
    assert "hidden" in place


def event(number: int, payload: str = "{}") -> bytes:
    message = {
        "id": f"m-{number}", "position": number, "topic": "logs", "partition": 0,
        "payload": orjson.Fragment(payload), "created_at": "2026-01-31T12:00:00Z",
    }  # fmt: skip
    return b"id: c%d\ndata: %b\n\n" % (number, orjson.dumps(message))


def told(written: bytes) -> tuple[str, list[str], int]:
    """Read one event of the page: its cursor, the positions of its messages, how many it lacks."""
    cursor, data, *_ = written.decode().split("\n")
    found = json.loads(data.removeprefix("data: "))
    positions = [one.get("position", one["text"]) for one in found["rows"]]
    return cursor.removeprefix("id: "), positions, found["left_out"]


def test_of_very_many_messages_a_second_the_last_few_are_shown_and_the_rest_counted() -> None:
    now = 7.0
    events = Events(lambda: now)
    many = EACH_SECOND + 5
    cursor, positions, left_out = told(events.shown(b"".join(map(event, range(many)))))
    assert (cursor, left_out) == (f"c{many - 1}", 5)
    assert positions == [f"{number}" for number in range(5, many)]
    assert told(events.shown(event(500))) == ("c500", [], 1)
    now = 8.0
    assert told(events.shown(event(501))) == ("c501", ["501"], 0)


def test_events_may_come_in_pieces() -> None:
    events, whole = Events(), b"retry: 1000\nid: c0\n\n" + event(1) + b": still here\n\n" + event(2)
    pieces = [events.shown(whole[at : at + 1]) for at in range(len(whole))]
    seen = [one for one in pieces if one]
    assert seen.pop(2) == b": still here\n\n"
    assert [told(one) for one in seen] == [("c0", [], 0), ("c1", ["1"], 0), ("c2", ["2"], 0)]


def test_of_a_large_message_its_size_is_told_and_of_one_beyond_bounds_that_it_was_there() -> None:
    events = Events()
    _, texts, _ = told(events.shown(event(1, f'"{"x" * LARGEST_EVENT}"')))
    assert "too large to be shown here" in texts[0]
    part = b"x" * 600_000
    assert events.shown(b"id: c2\ndata: " + part) == b""
    assert events.shown(part) == b""
    assert events.shown(part) == b""
    assert told(events.shown(b"\n\n" + event(3))) == ("c3", ["3"], 1)
    assert len(events._rest) == 0
