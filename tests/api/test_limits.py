"""What clients may take: requests at once, time, memory, connections. Real sockets throughout."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from tenantry.http import protocol
from tenantry.http.auth import Listener
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem
from tenantry.http.tokens import Tokens
from tests.api.serving import SECRET, Served, World, serving
from tests.depth import examples
from tests.waiting import DEADLINE, eventually

HEAD = b"POST /tenants/acme/messages HTTP/1.1\r\nHost: localhost\r\n"
BODY_BEGUN = HEAD + b"Content-Type: application/json\r\nContent-Length: 900000\r\n\r\n"


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme")
        yield served


@contextmanager
def stuck(api: Served, requests: int) -> Iterator[None]:
    """Have so many requests served that don't end before the block does."""
    world = api.world
    while world.control.entered.acquire(blocking=False):
        pass
    world.control.held = threading.Event()
    with ThreadPoolExecutor(requests) as pool:
        url = f"{api.url}/tenants/acme/pause"
        asked = [
            pool.submit(httpx.post, url, timeout=DEADLINE, trust_env=False) for _ in range(requests)
        ]
        try:
            for _ in range(requests):
                assert world.control.entered.acquire(timeout=DEADLINE)
            yield
        finally:
            world.control.held.set()
            for one in asked:
                one.result(DEADLINE)


def test_a_client_with_too_many_requests_is_told_so_and_others_are_served(api: Served) -> None:
    limits = _limits(api)
    limits._most_of_a_client = 3
    with stuck(api, 3):
        refused = api.tcp.get("/tenants/acme")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["content-type"] == "application/problem+json"
        assert api.control.get("/tenants/acme").status_code == 200
        assert api.tcp.get("/healthz").status_code == 200
        assert api.tcp.get("/readyz").status_code == 200
    eventually(lambda: not limits._clients.total())
    assert api.tcp.get("/tenants/acme").status_code == 200


def test_too_many_requests_on_tcp_leave_the_control_socket_alone(api: Served) -> None:
    _limits(api)._most = 3
    with stuck(api, 3):
        assert api.tcp.get("/tenants/acme").status_code == 503
        assert api.control.get("/tenants/acme").status_code == 200
        assert api.control.post("/drain").status_code == 202


def test_holders_of_tokens_are_counted_apart() -> None:
    def bearer(subject: str) -> dict[str, str]:
        token = Tokens(SECRET).issue(subject=subject, now=datetime.now(UTC), ttl=timedelta(hours=1))
        return {"Authorization": f"Bearer {token}"}

    with serving(World(jwt_secret=SECRET)) as api:
        api.world.create("acme")
        limits = _limits(api)
        limits._most_of_a_client = 1
        with api.tcp.stream(
            "GET", "/messages/stream?tenant_id=acme", headers=bearer("ann")
        ) as open_stream:
            assert open_stream.status_code == 200
            assert api.tcp.get("/tenants", headers=bearer("ann")).status_code == 429
            assert api.tcp.get("/tenants", headers=bearer("bob")).status_code == 200


def test_a_request_that_takes_too_long_is_answered_nevertheless(api: Served) -> None:
    limits = _limits(api)
    with stuck(api, 1):
        limits._seconds = 0.2
        answer = api.tcp.post("/tenants/acme/pause")
        assert answer.status_code == 504
        assert answer.json()["type"].endswith("request-timeout")


def test_who_reads_a_large_answer_too_slowly_is_hung_up_on_and_is_no_mistake_of_ours(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours, given, ends = 12_345.0, asyncio.timeout, list[Callable[[], object]]()

    def timeout(seconds: float) -> asyncio.Timeout:
        limit = given(seconds)
        if seconds == hours:
            loop = asyncio.get_running_loop()
            ends.append(lambda: loop.call_soon_threadsafe(limit.reschedule, loop.time()))
        return limit

    monkeypatch.setattr(asyncio, "timeout", timeout)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with (
        capture_logs() as logs,
        serving(World(request_timeout=hours)) as api,
        ExitStack() as opened,
    ):
        api.world.create("acme")
        for _ in range(8):
            api.world.messages.add("acme", payload=json.dumps("x" * 1_000_000))
        slow = opened.enter_context(socket.socket())
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(DEADLINE)
        slow.connect(("127.0.0.1", api.server.tcp_port or 0))
        slow.sendall(b"GET /messages?tenant_id=acme HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        (end,) = ends
        end()  # now, and not before the answer has begun
        eventually(
            lambda: any(one["event"] == "api.answer_broken_off" for one in logs), what="an end"
        )
        received = len(answer)
        with suppress(ConnectionResetError):
            while part := slow.recv(1 << 16):
                received += len(part)
        assert received < 8_000_000
        assert api.tcp.get("/healthz").status_code == 200
    assert "api.request_crashed" not in {one["event"] for one in logs}
    assert not [one for one in caplog.records if one.name.startswith("uvicorn")]


def test_a_thread_that_nobody_waits_for_any_more_keeps_its_place() -> None:
    async def scenario() -> None:
        pool, release = Pool(1, patience=0.05), threading.Event()
        running = asyncio.create_task(pool.run(release.wait, DEADLINE))
        await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(Problem):
            await pool.run(int)
        release.set()
        async with asyncio.timeout(DEADLINE):
            while True:
                with suppress(Problem):
                    assert await pool.run(int) == 0
                    return

    asyncio.run(scenario())


def test_all_bodies_together_are_bounded(api: Served) -> None:
    bounded = api.bodies
    bounded._held_bytes = 1_500_000
    begun = []
    try:
        for number in (2, 3):
            raw = connected(api, f"127.0.0.{number}")
            raw.sendall(BODY_BEGUN + b"x" * 700_000)
            begun.append(raw)
        eventually(lambda: bounded._held[Listener.TCP] >= 1_400_000)
        large = {"payload": "x" * 200_000}
        refused = api.tcp.post("/tenants/acme/messages", json=large)
        assert refused.status_code == 503
        assert api.tcp.get("/tenants/acme").status_code == 200
        assert api.control.post("/tenants/acme/messages", json=large).status_code == 202
    finally:
        for raw in begun:
            raw.close()
    eventually(lambda: bounded._held.total() == 0, what="everything given back")
    assert api.tcp.post("/tenants/acme/messages", json=large).status_code == 202


def connected(api: Served, source: str = "") -> socket.socket:
    """Connect as a client at an address of this machine."""
    port = api.server.tcp_port or 0
    return socket.create_connection(
        ("127.0.0.1", port), timeout=DEADLINE, source_address=(source, 0)
    )


def test_a_client_that_sends_much_at_once_is_told_so_and_others_are_served(api: Served) -> None:
    bounded = api.bodies
    bounded._held_bytes = 4_000_000
    with connected(api, "127.0.0.2") as first, connected(api, "127.0.0.2") as second:
        first.sendall(BODY_BEGUN + b"x" * 700_000)
        eventually(lambda: bounded._held["127.0.0.2"] == 700_000)
        second.sendall(BODY_BEGUN + b"x" * 700_000)
        assert second.recv(100).startswith(b"HTTP/1.1 429 ")
        large = {"payload": "x" * 700_000}
        assert api.tcp.post("/tenants/acme/messages", json=large).status_code == 202
    eventually(lambda: bounded._held.total() == 0, what="everything given back")


@pytest.mark.parametrize("announced", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
def test_who_withholds_the_body_of_a_get_is_answered_at_once_and_holds_nothing(
    api: Served, announced: bytes
) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + announced + b"\r\n\r\n"
    clients = []
    try:
        for _ in range(64):
            raw = connected(api)
            raw.sendall(head)
            clients.append(raw)
        assert {raw.recv(12) for raw in clients} == {b"HTTP/1.1 400"}
        assert not api.bodies._held.total()
        assert api.tcp.post("/tenants/acme/messages", json={"payload": 1}).status_code == 202
        assert api.tcp.get("/healthz", headers={"Content-Length": "0"}).status_code == 200
    finally:
        for raw in clients:
            raw.close()


def test_a_client_that_keeps_all_connections_still_leaves_room_for_others() -> None:
    with serving(World(), max_connections=5) as api:
        idle = [connected(api, "127.0.0.2") for _ in range(5)]
        try:
            # They are taken in the order in which they came: all places are theirs.
            for _ in range(2):
                assert httpx.get(f"{api.url}/healthz", timeout=DEADLINE, trust_env=False).is_success
            readable, _, _ = select.select(idle, [], [], DEADLINE)
            assert 1 <= len(readable) <= 2
            assert all(_is_closed(raw) for raw in readable)
        finally:
            for raw in idle:
                raw.close()


def test_connections_beyond_the_limit_are_closed() -> None:
    with serving(World(), max_connections=5) as api:
        opened = [
            socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE)
            for _ in range(8)
        ]
        try:
            assert [_is_closed(raw) for raw in opened[5:]] == [True] * 3
            assert api.control.get("/healthz").status_code == 200
        finally:
            for raw in opened:
                raw.close()
        eventually(lambda: api.tcp.get("/healthz").status_code == 200)


CLIENTS = examples(250, 1000)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_hundreds_of_clients_that_trickle_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 60.0)  # nobody is let go during the test
    monkeypatch.setattr(protocol, "HEADLESS_OF_A_CLIENT", CLIENTS)
    with serving(World(body_timeout=60.0)) as api:
        api.world.create("acme")
        with trickling(api.server.tcp_port or 0, CLIENTS) as trickled:
            eventually(lambda: trickled() > 3 * CLIENTS, what="bytes trickling")
            for _ in range(20):
                for call in (
                    lambda: api.control.get("/healthz"),
                    lambda: api.tcp.get("/healthz"),
                    lambda: api.control.get("/tenants/acme"),
                    lambda: api.tcp.post("/tenants/acme/messages", json={"payload": 1}),
                ):
                    assert call().is_success
            assert len(api.world.publishing.sent) == 20


def test_a_client_that_withholds_heads_has_but_some_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "HEADLESS_OF_A_CLIENT", 3)
    monkeypatch.setattr(protocol, "HURRY_SECONDS", 0.0)
    with serving(World()) as api, ExitStack() as opened:
        used = opened.enter_context(connected(api))
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert used.recv(100).startswith(b"HTTP/1.1 200")
        withheld = [opened.enter_context(connected(api)) for _ in range(3)]
        for one in withheld:
            one.sendall(b"GET /healthz HT")
        assert api.tcp.get("/healthz").is_success
        # That was a fourth: the oldest made room for it, and who has brought a head stays.
        with suppress(ConnectionError):
            assert withheld[0].recv(1) == b""
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: b"HTTP/1.1 200" in used.recv(10_000))
        withheld[2].sendall(b"TP/1.1\r\nHost: localhost\r\n\r\n")
        assert withheld[2].recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", [HEAD + b"Content-Length: 90\r\n\r\n", BODY_BEGUN])
def test_who_shows_no_token_waits_for_no_body_and_may_not_go_on_with_it(
    monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(protocol, "REST_SECONDS", 0.2)
    with serving(World(jwt_secret=SECRET)) as api, connected(api) as raw:
        raw.sendall(head)
        assert raw.recv(100).startswith(b"HTTP/1.1 401")

        def ended() -> bool:
            try:
                raw.sendall(b" ")
                return raw.recv(10_000) == b""
            except ConnectionError:
                return True
            except TimeoutError:
                return False

        raw.settimeout(0.05)
        eventually(ended, what="the end of a connection whose body trickles after the answer")


def test_who_sends_a_body_after_the_answer_may_ask_again_or_has_sent_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "REST_BYTES", 1_000)
    monkeypatch.setattr(protocol, "REST_SECONDS", 60.0)
    with serving(World(jwt_secret=SECRET)) as api:
        with connected(api) as raw:
            raw.sendall(HEAD + b"Content-Length: 90\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 401")
            raw.sendall(b" " * 90 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            eventually(lambda: b"HTTP/1.1 200" in raw.recv(10_000))
        with connected(api) as raw:
            raw.sendall(BODY_BEGUN)
            assert raw.recv(100).startswith(b"HTTP/1.1 401")
            with suppress(ConnectionError):
                raw.sendall(b" " * 10_000)
                while raw.recv(10_000):
                    pass


@contextmanager
def trickling(port: int, clients: int) -> Iterator[Callable[[], int]]:
    """Have clients send a request's head, or its body, a byte at a time; tells how many bytes."""
    sockets = []
    done = threading.Event()
    sent = 0

    def trickle() -> None:
        nonlocal sent
        while not done.is_set():
            for raw in sockets:
                try:
                    raw.send(b"x")
                except OSError:
                    continue
                sent += 1
            done.wait(0.1)

    thread = threading.Thread(target=trickle)
    try:
        for number in range(clients):
            raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
            raw.sendall(BODY_BEGUN if number % 2 else HEAD + b"X-Slow: ")
            raw.setblocking(False)
            sockets.append(raw)
        thread.start()
        yield lambda: sent
    finally:
        done.set()
        if thread.is_alive():
            thread.join(DEADLINE)
        for raw in sockets:
            raw.close()


def _is_closed(raw: socket.socket) -> bool:
    try:
        return raw.recv(1) == b""
    except ConnectionResetError:
        return True


def _middleware(api: Served, name: str) -> Any:
    layer: Any = api.app.middleware_stack
    while type(layer).__name__ != name:
        layer = getattr(layer, "_app", None) or layer.app
    return layer


def _limits(api: Served) -> Any:
    assert api.control.get("/healthz").status_code == 200  # builds the stack
    return _middleware(api, "Limits")
