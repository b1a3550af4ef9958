"""Hostile input against a running daemon: refused, or stored exactly; no forged log lines."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.acceptance.program import Program, Tenant
from tests.api.test_limits import trickling
from tests.waiting import DEADLINE, eventually

IDS = [
    "", "A", "a_b", "-a", "a-", "a.b", "a/b", "../a", "a'b", 'a"b', "a;DROP TABLE tenants", "a$",
    "^a", ".*", "a|b", "(a)", "é", "\uff41", "a\u200b", "\U0001f600", "a\r\nb", "a\nb", "a\0b",
    "a b", " a", "%2e", "a" * 41, "x" * 10_000, "__proto__", "a\ud800",
]  # fmt: skip

EXACT: list[str] = [
    "12345678901234567890123456789012345678901234567890",
    "-0.0000000000000000000000000000000000000001",
    "1.10",
    '"\\r\\n\\t\\u001b[31m"',
    '"é \uff41 \U0001f600 \\ud83d\\ude00"',
    '{"__proto__": {"a": 1}, "": null}',
    '"' + "x" * 200_000 + '"',
    "[" * 500 + "]" * 500,
    '{"a":' * 300 + "1" + "}" * 300,
]

REFUSED = [
    b'{"payload": NaN}', b'{"payload": Infinity}', b'{"payload": -Infinity}', b'{"payload": 01}',
    b'{"payload": "\\ud800"}', b'{"payload": "\xff"}', b'{"payload": "\n"}', b'{"payload": 1,}',
    b'{"payload": 1} x', b"[" * 100_000, b'{"payload": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"\xef\xbb\xbf{}", b"\x00", b"", b"null", b'{"payload": 1, "id": ""}',
    b'{"payload": 1, "id": "a\\u0000b"}', b'{"payload": 1, "id": "' + b"x" * 256 + b'"}',
    b'{"payload": 1, "topic": "logs\\r\\nX: y"}', b'{"payload": 1, "topic": "logs.0"}',
    b'{"payload": 1, "key": 1e999}', b'{"payload": 1, "partition": 0}',
]  # fmt: skip

MESSAGE_IDS = [
    "'",
    '"; DROP TABLE messages; --',
    "a\r\nb",
    "\U0001f600",
    "%s",
    "{}",
    "../..",
    "x" * 255,
]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """The settings of the daemon that these tests share."""
    return {"TENANTRY_LOG_LEVEL": "debug"}


@pytest.fixture
def hostile(shared: Program) -> Iterator[tuple[Program, Tenant]]:
    program = shared
    yield program, program.create(topics=["logs"])
    assert program.call("GET", "/healthz").status_code == 200
    for line in program.logged:
        entry = json.loads(line)
        assert isinstance(entry, dict)
        assert not str(entry["event"]).startswith("forged")
    assert not program.events("api.request_crashed")


def post(program: Program, path: str, content: bytes) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(program.socket))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=DEADLINE) as client:
        return client.post(path, content=content, headers={"Content-Type": "application/json"})


def stored(program: Program, tenant: Tenant) -> dict[str, str]:
    """Return the stored payloads as text, by message id."""
    found: dict[str, str] = {}
    answer = program.call("GET", f"/messages?tenant_id={tenant.id}&limit=1000")
    assert answer.status_code == 200
    for one in answer.json()["data"]:
        found[one["id"]] = json.dumps(one.get("payload"))
    return found


def test_hostile_tenant_ids_name_no_tenant(hostile: tuple[Program, Tenant]) -> None:
    program, _ = hostile
    before = program.get("/tenants")["data"]
    for tenant_id in IDS:
        content = json.dumps({"name": "x", "id": tenant_id}).encode()
        answer = post(program, "/tenants", content)
        assert answer.status_code in {400, 422}, tenant_id
        if not tenant_id or "\ud800" in tenant_id:
            continue
        path = f"/tenants/{quote(tenant_id, safe='')}"
        for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("GET", "/events")):
            assert program.call(method, path + rest).status_code in {404, 405}, tenant_id
        query = f"/messages?tenant_id={quote(tenant_id)}"
        assert program.call("GET", query).status_code == 404, tenant_id
    assert program.get("/tenants")["data"] == before


def test_names_are_stored_exactly_or_refused(hostile: tuple[Program, Tenant]) -> None:
    program, _ = hostile
    for number, name in enumerate(
        ['O\'Neil "&" <b>', "Ünïcödé \U0001f600", "%s {} \\n", "a" * 100]
    ):
        tenant_id = program.name(f"n{number}")
        answer = program.call("POST", "/tenants", {"name": name, "id": tenant_id})
        if answer.status_code == 201:
            assert program.get(f"/tenants/{tenant_id}")["name"] == name
        else:
            assert answer.status_code == 422
    for name in ("a\r\nb", "a\0b", "\x1b[31m", "\u202e", "", " ", "a" * 10_000):
        answer = program.call("POST", "/tenants", {"name": name})
        assert answer.status_code == 422, repr(name)


def test_payloads_are_stored_to_the_last_digit(hostile: tuple[Program, Tenant]) -> None:
    program, tenant = hostile
    path = f"/tenants/{tenant.id}/messages"
    for number, text in enumerate(EXACT):
        content = f'{{"id": "m-{number}", "payload": {text}}}'.encode()
        assert post(program, path, content).status_code == 202, text[:80]
    eventually(lambda: len(stored(program, tenant)) == len(EXACT))
    raw = program.call("GET", f"/messages?tenant_id={tenant.id}&limit=1000").text
    assert EXACT[0] in raw
    assert EXACT[1] in raw
    assert '"payload":1.10' in raw
    found = stored(program, tenant)
    for number, text in enumerate(EXACT):
        assert json.loads(found[f"m-{number}"]) == json.loads(text), text[:80]


def test_what_can_not_be_stored_is_refused(hostile: tuple[Program, Tenant]) -> None:
    program, tenant = hostile
    for content in REFUSED:
        answer = post(program, f"/tenants/{tenant.id}/messages", content)
        assert answer.status_code in {400, 404, 422}, content[:80]
        assert answer.headers["content-type"] == "application/problem+json"
    # JSON can say it, jsonb can't hold it: a dead letter, with its bytes.
    nul = b'{"id": "nul", "payload": "\\u0000"}'
    assert post(program, f"/tenants/{tenant.id}/messages", nul).status_code == 202
    letters = eventually(lambda: program.get(f"/tenants/{tenant.id}/dead-letters")["data"])
    assert [one["id"] for one in letters] == ["nul"]
    assert stored(program, tenant) == {}


def test_message_ids_are_stored_exactly(hostile: tuple[Program, Tenant]) -> None:
    program, tenant = hostile
    batch = [{"payload": 1, "id": one} for one in MESSAGE_IDS]
    answer = program.call("POST", f"/tenants/{tenant.id}/messages", batch)
    assert answer.json() == {"ids": MESSAGE_IDS}
    eventually(lambda: set(stored(program, tenant)) == set(MESSAGE_IDS))


INJECTION = '\r\nSet-Cookie: a=b\r\n\r\n{"event": "forged"}'


def test_nothing_breaks_out_of_a_header_or_a_log_line(hostile: tuple[Program, Tenant]) -> None:
    program, tenant = hostile
    quoted = quote(INJECTION, safe="")
    for path in (
        f"/tenants/{quoted}",
        f"/{quoted}",
        f"/messages?tenant_id={tenant.id}&topic={quoted}",
        f"/messages?tenant_id={tenant.id}&cursor={quoted}",
        f"/tenants?limit=1&cursor={quoted}",
        f"/tenants?{quoted}=1",
        f"/tenants/{tenant.id}?at={quoted}",
    ):
        answer = program.call("GET", path)
        assert "set-cookie" not in answer.headers
        assert answer.status_code in {200, 400, 404, 422}
    body = {"name": INJECTION, "id": INJECTION, INJECTION: INJECTION}
    assert program.call("POST", "/tenants", body).status_code == 422
    # The link to the next page repeats the request's parameters.
    for number in range(3):
        program.call("POST", f"/tenants/{tenant.id}/messages", {"payload": number})
    eventually(lambda: len(stored(program, tenant)) == 3)
    odd = f"/messages?tenant_id={tenant.id}&limit=1&topic=default"
    assert program.call("GET", odd).headers["link"].count("<") == 1
    port = program.get("/info")["server"]["port"]
    forged = b'{"event":"forged"}'
    end = b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    healthz = b"GET /healthz HTTP/1.1\r\nX-Request-ID: "
    for head in (
        healthz + b"a\rb" + end,
        healthz + b"a\r\n " + forged + end,
        healthz + b"\x1b[31m\xff" + end,
        b"GET /\r\nforged HTTP/1.1" + end,
        b"GET /\x00 HTTP/1.1" + end,
        forged + b" / HTTP/1.1" + end,
        b"POST /tenants HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3"
        + end
        + b"0\r\n\r\n",
    ):
        answer = _raw(port, head)
        assert b"set-cookie" not in answer.lower()
        assert forged not in answer
        status = answer.split(b" ", 2)[1]
        assert status in {b"200", b"400", b"404", b"405", b"415", b"422"}, (head, answer)


def test_a_thousand_clients_that_trickle_stop_neither_ingestion_nor_the_control_socket(
    shared: Program,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    tenant = shared.create()
    port = shared.get("/info")["server"]["port"]
    try:
        with trickling(port, 1000) as trickled:
            eventually(lambda: trickled() > 2000, what="bytes trickling")
            for number in range(10):
                batch = [{"payload": n, "id": f"{number}-{n}"} for n in range(20)]
                calls: list[tuple[str, str, Any]] = [
                    ("GET", "/healthz", None),
                    ("GET", "/status", None),
                    ("POST", f"/tenants/{tenant.id}/messages", batch),
                ]
                for method, path, body in calls:
                    assert shared.call(method, path, body, timeout=DEADLINE).is_success
                url = f"http://127.0.0.1:{port}/healthz"
                assert httpx.get(url, timeout=DEADLINE, trust_env=False).status_code == 200
            eventually(lambda: len(stored(shared, tenant)) == 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as raw:
        raw.sendall(data)
        received = b""
        while part := raw.recv(65536):
            received += part
        return received
