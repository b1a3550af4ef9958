"""Live tails over the real listeners."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import httpx
import pytest

from tenantry.api import streams
from tenantry.api.streams import Chunk, Streams
from tenantry.http import protocol
from tenantry.messages.pages import ROWS_BYTES
from tenantry.messages.port import PartitionMissingError, StoreUnavailableError
from tests.api.event_stream import EventStream
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme", topics=("logs",))
        yield served


class Tail(EventStream):
    """The events of a stream, one by one."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        super().__init__(answer)

    def message(self) -> tuple[str, Any]:
        while True:
            block = self.block()
            if "data" in block:
                return block["id"], json.loads(block["data"])


@contextmanager
def following(api: Served, last: str | None = None, **params: str) -> Iterator[Tail]:
    headers = {} if last is None else {"Last-Event-ID": last}
    query = {"tenant_id": "acme"} | params
    with api.tcp.stream("GET", "/messages/stream", params=query, headers=headers) as answer:
        yield Tail(answer)


def store(api: Served, **fields: Any) -> None:
    api.world.messages.add("acme", **fields)
    api.world.control.stored["acme"] = api.world.control.stored.get("acme", 0) + 1


def test_a_stream_begins_now_and_brings_what_is_stored_from_then_on(api: Served) -> None:
    store(api)
    with following(api) as tail:
        opening = tail.block()
        assert (opening["retry"], bool(opening["id"])) == ("1000", True)
        store(api, payload='{"a":\r\n1}')
        _, message = tail.message()
    shown = api.control.get("/messages", params={"tenant_id": "acme"}).json()["data"]
    assert message == shown[1]


def test_a_stream_is_taken_up_after_the_last_event_and_nothing_is_missed(api: Served) -> None:
    with following(api) as tail:
        begun = tail.block()["id"]
    for _ in range(5):
        store(api)
    seen = []
    last = begun
    for _ in range(5):  # a new connection for each
        with following(api, last) as tail:
            last, message = tail.message()
            seen.append(message["position"])
    assert seen == [1, 2, 3, 4, 5]


def test_a_stream_goes_on_from_where_a_page_ended(api: Served) -> None:
    for _ in range(3):
        store(api)
    page = api.control.get("/messages", params={"tenant_id": "acme", "limit": "2"}).json()
    with following(api, cursor=page["follow_cursor"]) as tail:
        assert tail.message()[1]["position"] == 3


def test_a_stream_of_a_topic_brings_only_that(api: Served) -> None:
    with following(api, topic="logs") as tail:
        tail.block()
        store(api)
        store(api, topic="logs")
        assert tail.message()[1]["topic"] == "logs"


def test_more_than_a_page_comes_without_a_gap(api: Served) -> None:
    with following(api) as tail:
        begun = tail.block()["id"]
    for _ in range(650):
        store(api)
    with following(api, begun) as tail:
        assert [tail.message()[1]["position"] for _ in range(650)] == list(range(1, 651))


@pytest.mark.parametrize(
    ("params", "last", "status"),
    [
        ({"tenant_id": "nobody"}, None, 404),
        ({"tenant_id": "acme", "cursor": "x"}, None, 400),
        ({"tenant_id": "acme"}, "x", 400),
        ({}, None, 422),
        ({"tenant_id": "acme", "limit": "3"}, None, 422),
    ],
)
def test_a_stream_that_can_not_be_is_refused(
    api: Served, params: dict[str, str], last: str | None, status: int
) -> None:
    headers = {} if last is None else {"Last-Event-ID": last}
    answer = api.tcp.get("/messages/stream", params=params, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_idle_stream_shows_that_it_lives(api: Served) -> None:
    api.app.state.services.streams._heartbeat = 0.05
    with following(api) as tail:
        tail.block()
        assert "" in tail.block()


def test_a_stream_waits_while_the_store_is_away_and_then_goes_on(api: Served) -> None:
    api.app.state.services.streams._heartbeat = 0.05
    with following(api) as tail:
        tail.block()
        api.world.messages.error = StoreUnavailableError("away")
        tail.block()
        store(api)
        api.world.messages.error = None
        assert tail.message()[1]["position"] == 1


def test_a_stream_ends_with_its_tenants_messages(api: Served) -> None:
    with following(api) as tail:
        tail.block()
        api.world.messages.error = PartitionMissingError("gone")
        store(api)
        with pytest.raises(EOFError):
            tail.message()


def test_a_stream_ends_after_its_time(api: Served) -> None:
    api.app.state.services.streams._longest = 0.05
    with following(api) as tail:
        tail.block()
        with pytest.raises(EOFError):
            tail.message()


def test_streams_end_when_the_server_stops(api: Served) -> None:
    with following(api) as tail:
        tail.block()
        stopping = threading.Thread(target=api.stop)
        stopping.start()
        with pytest.raises(EOFError):
            tail.message()
        stopping.join(DEADLINE)
        assert not stopping.is_alive()


def test_streams_are_bounded_and_give_their_place_back(api: Served) -> None:
    streams: Streams = api.app.state.services.streams
    streams._most_of_a_client = 2
    with following(api) as first, following(api) as second:
        first.block()
        second.block()
        refused = api.tcp.get("/messages/stream", params={"tenant_id": "acme"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        with api.control.stream("GET", "/messages/stream?tenant_id=acme") as other:
            assert other.status_code == 200  # another client
            streams._most = 3
            busy = api.control.get("/messages/stream?tenant_id=acme")
            assert busy.status_code == 503
    eventually(lambda: streams.open == 0, what="every place given back")
    assert not streams._sleepers


def test_a_hundred_streams_take_no_thread_each(api: Served) -> None:
    api.app.state.services.streams._most_of_a_client = 100
    before = threading.active_count()
    sockets = []
    try:
        for _ in range(100):
            raw = socket.create_connection(
                ("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE
            )
            sockets.append(raw)
            raw.sendall(b"GET /messages/stream?tenant_id=acme HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # One by one: of connections whose head has not been read a client has but a few.
            assert raw.recv(4) == b"HTTP"
        eventually(lambda: api.app.state.services.streams.open == 100, what="100 streams")
        store(api)
        for raw in sockets:
            received = raw.makefile("rb")
            while not received.readline().startswith(b"data: "):
                pass
        assert threading.active_count() <= before + 4 + 16  # the pools' own
    finally:
        for raw in sockets:
            raw.close()


def test_who_does_not_read_is_cut_off(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.2)
    streams: Streams = api.app.state.services.streams
    with following(api) as tail:
        begun = tail.block()["id"]
    for _ in range(400):
        store(api, payload=json.dumps("x" * 100_000))
    eventually(lambda: streams.open == 0)
    raw = socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE)
    try:
        head = f"GET /messages/stream?tenant_id=acme&cursor={begun} HTTP/1.1\r\nHost: localhost"
        # The front, if it has got rid of its part by then, would wait for another request.
        raw.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        begun_with = raw.recv(4096)
        assert begun_with.startswith(b"HTTP/1.1 200")
        eventually(lambda: streams.open == 0, what="the stream cut off")
        received = len(begun_with)
        with suppress(ConnectionError):
            while part := raw.recv(1 << 20):
                received += len(part)
        assert received < 400 * 100_000
    finally:
        raw.close()


def test_large_messages_follow_one_another_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SHORTEST_WAIT", 10 * DEADLINE)

    def read(after: int) -> Chunk:
        return Chunk(b"x" * ROWS_BYTES, 1, after + 1)

    async def scenario() -> None:
        followed = Streams(World().control, heartbeat=10 * DEADLINE).follow(
            read, tenant_id="acme", after=0, opening=b"", closing=None
        )
        async with aclosing(followed) as events, asyncio.timeout(DEADLINE):
            for _ in range(4):
                await anext(events)

    asyncio.run(scenario())
