"""Values that readers of numbers, times, texts and JSON stumble over, in every place of a request.

What is drawn from the OpenAPI document hardly ever has them: whole numbers of more digits than
Python reads, floats that are none, times beyond the calendar, surrogates, NUL, deep nesting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest

from tests.api_cases import OPERATIONS, check
from tests.fakes.api import SECRET, Served, World, serving

DIGITS = "9" * 4_400
"""More than Python makes a number of."""

LARGE = "9" * 400
"""It makes one of these, and no float of that."""

TEXTS = (
    *(
        DIGITS,
        LARGE,
        f"-{LARGE}",
        f"-{DIGITS}",
        f"{DIGITS}.5",
        "1e999",
        "-1e999",
        "inf",
        "nan",
        "-0",
        "1_0",
        "٣",
        "²",
    ),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-12:00", "2026-02-30T00:00:00Z"),
    *("0000-00-00T00:00:00Z", "99999-01-01T00:00:00Z", "2026-01-01T24:00:60Z"),
    *("\0", "a\0b", "\ud800", "\udfff\ud800", "\u202e", "\U0010ffff", "%ff", "", " ", "[" * 2_000),
    *("{" * 500, "urn:uuid:{" + "0" * 32 + "}", "0" * 32, "-" * 36, "AAAA" * 12, "true", "null"),
)
RAW = (b"%FF%FE", b"%C0%80", b"%ED%A0%80", b"%00", b"%", b"%zz")
NUMBERS = (
    DIGITS,
    f"-{DIGITS}",
    LARGE,
    f"-{LARGE}",
    f"{LARGE}.0",
    "1e999",
    "-1e999",
    "1e308",
    "-0.0",
    "18446744073709551616",
    "1.5",
)
JSON = (
    *NUMBERS,
    *("null", "true", "[]", "{}", '"\\u0000"', '"\\ud800"', '"\\ud83d"', "NaN", "Infinity", '"'),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, '{"a":' * 100_000),
    *(json.dumps(text) for text in TEXTS),
)
BODIES: Mapping[str, tuple[str, ...]] = {
    "POST /tenants": (
        *('{"name": %s}', '{"name": "n", "id": %s}', '{"name": "n", "workers": %s}'),
        *('{"name": "n", "partitions": %s}', '{"name": "n", "topics": %s}', '{%s: "n"}'),
        '{"name": "n", "topics": [%s]}',
    ),
    "PUT /tenants/{tenant_id}/config/concurrency": ('{"workers": %s}',),
    "POST /tenants/{tenant_id}/topics": ('{"topics": [%s]}', '{"topics": %s}'),
    "POST /tenants/{tenant_id}/messages": (
        *(
            '{"payload": %s}',
            '[{"payload": %s}]',
            '{"payload": 1, "id": %s}',
            '{"payload": {%s: 1}}',
        ),
        *(
            '{"payload": 1, "topic": %s}',
            '{"payload": 1, "key": %s}',
            '{"payload": 1, "headers": %s}',
        ),
        *('{"payload": 1, "headers": {"h": %s}}', '{"payload": 1, "headers": {%s: 1}}'),
        '{"payload": 1, "partition": %s}',
    ),
    "POST /tenants/{tenant_id}/dead-letters/replay": (
        *('{"all": %s}', '{"ids": [%s]}', '{"ids": %s}', '{"all": true, "limit": %s}'),
        *('{"filter": {"since": %s}}', '{"filter": {"reason": %s}}', '{"filter": {"topic": %s}}'),
        '{"all": true, "force": %s, "dry_run": true}',
    ),
    "DELETE /tenants/{tenant_id}/dead-letters": ('{"ids": [%s]}', '{"all": true, "limit": %s}'),
    "POST /isolation": ('{"tenants": [%s]}', '{"broker": %s}', '{"tenants": %s}'),
}
ENDING = {"POST /stop", "POST /drain", "DELETE /tenants/{tenant_id}"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as api:
        api.app.state.services.streams._longest = 0.0
        api.world.create("acme", topics=("logs",))
        yield api


@pytest.fixture(autouse=True)
def _nothing_crashes(served: Served, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert served.control.get("/healthz").status_code == 200
    logged = "".join(capsys.readouterr())
    assert "Traceback" not in logged
    assert "api.request_crashed" not in logged


def _ask(client: httpx.Client, method: str, target: bytes, **options: Any) -> None:
    url = client.base_url.copy_with(raw_path=target)
    answer = client.send(client.build_request(method, url, **options))
    check(answer.status_code, answer.headers, answer.content)


def _operations() -> Iterator[tuple[str, str, str]]:
    for operation in OPERATIONS:
        if operation not in ENDING:
            yield (operation, *operation.split(" ", 1))


def _encoded() -> list[bytes]:
    return [quote(text.encode(errors="surrogatepass"), safe="").encode() for text in TEXTS] + [*RAW]


def test_no_parameter_of_a_query_is_stumbled_over(served: Served) -> None:
    document = served.control.get("/openapi.json").json()
    tried = 0
    for _operation, method, path in _operations():
        described = document["paths"][path][method.lower()]
        queried = [one for one in described.get("parameters", ()) if one["in"] == "query"]
        # What the schema turns away it turns away all at once; a text is read further on.
        texts = [one["name"] for one in queried if '"string"' in json.dumps(one["schema"])]
        others = [one["name"] for one in queried if one["name"] not in texts]
        target = path.replace("{tenant_id}", "acme").replace("{message_id}", "m")
        target = target.replace("{letter_id}", "m")
        needed = "tenant_id=acme&" if path == "/messages/stream" else ""
        for value in _encoded():
            queries = [f"{needed}{name}=".encode() + value for name in texts]
            queries.append(b"&".join([*(f"{name}=".encode() + value for name in others), value]))
            for query in queries:
                _ask(served.control, method, target.encode() + b"?" + query)
                tried += 1
    assert tried > 500


def test_no_part_of_a_path_is_stumbled_over(served: Served) -> None:
    for _operation, method, path in _operations():
        places = [part for part in path.split("/") if part.startswith("{")]
        for wanted in places:
            for value in _encoded():
                target = path.encode()
                for place in places:
                    filling = value if place == wanted else b"acme"
                    target = target.replace(place.encode(), filling)
                _ask(served.control, method, target)


@pytest.mark.parametrize("operation", BODIES)
def test_no_field_of_a_body_is_stumbled_over(served: Served, operation: str) -> None:
    method, path = operation.split(" ", 1)
    target = path.replace("{tenant_id}", "acme").encode()
    for shape in ("%s", *BODIES[operation]):
        for value in JSON:
            content = (shape % value).encode()
            headers = {"content-type": "application/json"}
            _ask(served.control, method, target, content=content, headers=headers)


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "X-Request-ID", "Idempotency-Key", "Last-Event-ID", "Accept", "Origin"),
        *("Content-Type", "Tenantry-Peer", "Range", "If-None-Match", "Host", "Content-Length"),
    ],
)
def test_no_header_is_stumbled_over(served: Served, name: str) -> None:
    ours = {"Authorization": f"Bearer {_token()}"}
    if name == "Content-Length":
        ours["Content-Length"] = "0"
    for text in TEXTS:
        value = text.encode("utf-8", "surrogatepass").replace(b"\0", b"\x01")[:4_000].strip()
        for client in (served.control, served.tcp):
            for target in (b"/tenants/acme/messages", b"/messages/stream?tenant_id=acme"):
                method = "POST" if target.endswith(b"/messages") else "GET"
                headers = [(k.encode(), v.encode()) for k, v in ours.items()]
                headers = [one for one in headers if one[0].decode() != name]
                content = b'{"payload": 1}' if method == "POST" else None
                try:
                    _ask(
                        client,
                        method,
                        target,
                        content=content,
                        headers=[*headers, (name.encode(), value)],
                    )
                except httpx.ProtocolError:
                    continue  # h11 sends no such thing, or the server answered before it was sent


def _token(**claims: object) -> str:
    given = {"sub": "ann", "exp": 2**33, "scope": "tenant", "tenant_id": "acme"} | claims
    return jwt.encode(given, SECRET, algorithm="HS256")


@pytest.mark.parametrize("claim", ["sub", "exp", "iat", "nbf", "aud", "iss", "scope", "tenant_id"])
def test_no_claim_of_a_token_is_stumbled_over(served: Served, claim: str) -> None:
    base = {"sub": "ann", "exp": 2**33, "scope": "tenant", "tenant_id": "acme"}
    for value in JSON:
        if len(value) > 10_000:
            continue  # a head has no room for it
        members = [
            f"{json.dumps(key)}: {json.dumps(one)}" for key, one in base.items() if key != claim
        ]
        body = "{" + ", ".join([*members, f'"{claim}": {value}']) + "}"
        token = jwt.api_jws.encode(body.encode(), SECRET, algorithm="HS256")
        headers = {"Authorization": f"Bearer {token}"}
        _ask(served.tcp, "GET", b"/tenants/acme", headers=headers)
        _ask(
            served.tcp,
            "POST",
            b"/tenants/acme/dead-letters/replay",
            headers=headers,
            json={"all": True},
        )
