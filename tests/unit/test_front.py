"""The front's own parts: what the daemon tells it, and how it hands requests on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenantry.front.messages import Message, Serve, Stop, Trust, WorkWith, read, write
from tests.api.serving import SECRET, Served, World, serving
from tests.waiting import DEADLINE, eventually


@pytest.mark.parametrize(
    "message",
    [
        Serve(
            descriptor=3,
            relay=4,
            secrets=["ü" * 32],
            provider={"jwks_url": "https://login.test/keys", "scopes": {"ü": "read"}},
            tls=None,
            log_level="info",
            log_format="json",
            tracing={"endpoint": "https://c.test/v1/traces", "headers": {"a": "ü"}},
        ),
        WorkWith(database_url="postgresql://x\n/y", cursor_key="00ff", broker={"url": ""}),
        Trust(secrets=["new" * 11, "old" * 11]),
        Stop(),
    ],
)
def test_a_message_is_one_line_and_reads_as_it_was_written(message: Message) -> None:
    line = write(message)
    assert line.count(b"\n") == 1
    assert read(line) == message


@pytest.fixture
def api() -> Any:
    with serving(World()) as served:
        served.world.create("acme")
        yield served


def test_the_daemon_knows_a_caller_by_what_the_front_has_seen_not_by_what_was_said(
    api: Served,
) -> None:
    forged = {"Tenantry-Peer": "uid=0 pid=1"}
    answer = api.tcp.post("/tenants/acme/pause", headers=forged)
    assert answer.status_code == 200
    last = api.control.get("/tenants/acme/events?limit=10").json()["data"][-1]
    assert last["actor"] == "anonymous@127.0.0.1"


def test_a_request_has_one_id_on_both_sides(api: Served) -> None:
    answer = api.tcp.post("/tenants/acme/pause", headers={"X-Request-ID": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    last = api.control.get("/tenants/acme/events?limit=10").json()["data"][-1]
    assert last["correlation_id"] == "mine-1"


def test_what_needs_a_token_is_refused_before_the_daemon_is_asked(tmp_path: Path) -> None:
    with serving(World(jwt_secret=SECRET)) as api:
        api.api.stop()
        assert api.tcp.get("/tenants").status_code == 401


def test_while_the_daemon_does_not_answer_it_is_503_and_says_so(api: Served) -> None:
    api.api.stop()
    answer = api.tcp.get("/tenants")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("no-answer")


def test_a_client_that_goes_away_takes_its_place_at_the_daemon_along(api: Served) -> None:
    raw = socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE)
    raw.sendall(b"GET /messages/stream?tenant_id=acme HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert raw.recv(12) == b"HTTP/1.1 200"
    streams = api.app.state.services.streams
    eventually(lambda: streams.open == 1)
    raw.close()
    eventually(lambda: streams.open == 0, what="the stream's end at the daemon")


def test_many_answers_come_back_to_those_who_asked(api: Served) -> None:
    wrong: list[str] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=api.url, timeout=DEADLINE, trust_env=False) as client:
            for turn in range(10):
                name = f"{number}-{turn}"
                answer = client.get("/tenants/nobody", headers={"X-Request-ID": name})
                if answer.headers["x-request-id"] != name:
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not wrong
