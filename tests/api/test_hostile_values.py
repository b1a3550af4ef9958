"""Values that readers of numbers, times, texts and JSON stumble over, in every place of a request.

What is drawn from the OpenAPI document hardly ever has them: whole numbers of more digits than
Python reads, floats that are none, times beyond the calendar, surrogates, NUL, deep nesting.
What something has stumbled over once is tried everywhere; of the others each place has every
sixth, the next place the next, and a thorough run tries all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

import jwt
import pytest

from tests.api.cases import OPERATIONS, check
from tests.api.plain_http import PlainHttp
from tests.api.serving import SECRET, Served, World, serving
from tests.depth import examples

DIGITS = "9" * 4_400
"""More than Python makes a number of."""

LARGE = "9" * 400
"""It makes one of these, and no float of that."""

TEXTS = (DIGITS, LARGE, "\0", "\ud800", "[" * 2_000, "9" * 12 + "w")
"""Tried everywhere."""

MORE_TEXTS = (
    *(f"-{LARGE}", f"-{DIGITS}", f"{DIGITS}.5", "1e999", "-1e999", "inf", "nan", "-0", "1_0"),
    *("٣", "²", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-12:00"),
    *("2026-02-30T00:00:00Z", "0000-00-00T00:00:00Z", "99999-01-01T00:00:00Z"),
    *("2026-01-01T24:00:60Z", "a\0b", "\udfff\ud800", "\u202e", "\U0010ffff", "%ff", "", " "),
    *("{" * 500, "urn:uuid:{" + "0" * 32 + "}", "0" * 32, "-" * 36, "AAAA" * 12, "true", "null"),
)
RAW = (b"%FF%FE", b"%C0%80", b"%ED%A0%80", b"%00", b"%", b"%zz")
JSON = (
    *(DIGITS, f"-{DIGITS}", LARGE, f"-{LARGE}", "1e999", '"\\u0000"', '"\\ud800"'),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000),
    '{"a":' * examples(20_000, 100_000),
)
"""Tried everywhere."""

MORE_JSON = (
    *(f"{LARGE}.0", "-1e999", "1e308", "-0.0", "18446744073709551616", "1.5"),
    *("null", "true", "[]", "{}", '"\\ud83d"', "NaN", "Infinity", '"'),
    *(json.dumps(text) for text in (*TEXTS, *MORE_TEXTS)),
)
TURNS = examples(6, 1)
"""So many places after each other have together tried all values once."""

T = TypeVar("T")


def _share(values: Sequence[T], place: int) -> Sequence[T]:
    return values[place % TURNS :: TURNS]


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
SHAPES = [(operation, shape) for operation, own in BODIES.items() for shape in ("%s", *own)]
HEADERS = (
    *("Authorization", "X-Request-ID", "Idempotency-Key", "Last-Event-ID", "Accept", "Origin"),
    *("Content-Type", "Tenantry-Peer", "Range", "If-None-Match", "Host", "Content-Length"),
)
CLAIMS = ("sub", "exp", "iat", "nbf", "aud", "iss", "scope", "tenant_id")
AS_JSON = (b"Content-Type", b"application/json")
ENDING = {"POST /stop", "POST /drain", "DELETE /tenants/{tenant_id}"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as api:
        api.app.state.services.streams._longest = 0.0
        api.world.create("acme", topics=("logs",))
        yield api


@pytest.fixture(scope="module")
def control(served: Served) -> Iterator[PlainHttp]:
    with PlainHttp(served.path) as client:
        yield client


@pytest.fixture(scope="module")
def tcp(served: Served) -> Iterator[PlainHttp]:
    with PlainHttp(("127.0.0.1", served.server.tcp_port or 0)) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_crashes(served: Served, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert served.control.get("/healthz").status_code == 200
    logged = "".join(capsys.readouterr())
    assert "Traceback" not in logged
    assert "api.request_crashed" not in logged


def _ask(
    client: PlainHttp,
    method: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    content: bytes | None = None,
) -> None:
    answer = client.ask(method, target, headers, content)
    try:
        check(answer.status_code, answer.headers, answer.content)
    except (AssertionError, KeyError, ValueError) as error:
        asked = f"{method} {target[:200]!r} {headers!r:.400} {(content or b'')[:200]!r}"
        raise AssertionError(f"{asked} was answered {answer!r:.1000}") from error


def _operations() -> Iterator[tuple[str, str, str]]:
    for operation in OPERATIONS:
        if operation not in ENDING:
            yield (operation, *operation.split(" ", 1))


def _encoded(place: int) -> list[bytes]:
    texts = (*TEXTS, *_share(MORE_TEXTS, place))
    encoded = [quote(text.encode(errors="surrogatepass"), safe="").encode() for text in texts]
    return [*encoded, *_share(RAW, place)]


def test_no_parameter_of_a_query_is_stumbled_over(served: Served, control: PlainHttp) -> None:
    document = served.control.get("/openapi.json").json()
    place = 0
    for _operation, method, path in _operations():
        described = document["paths"][path][method.lower()]
        queried = [one for one in described.get("parameters", ()) if one["in"] == "query"]
        # What the schema turns away it turns away all at once; a text is read further on.
        texts = [one["name"] for one in queried if '"string"' in json.dumps(one["schema"])]
        others = [one["name"] for one in queried if one["name"] not in texts]
        target = path.replace("{tenant_id}", "acme").replace("{message_id}", "m")
        target = target.replace("{letter_id}", "m").replace("{part}", "1")
        needed = "tenant_id=acme&" if path == "/messages/stream" else ""
        for name in texts:
            for value in _encoded(place):
                query = f"{needed}{name}=".encode() + value
                _ask(control, method, target.encode() + b"?" + query)
            place += 1
        for value in _encoded(place):
            query = b"&".join([*(f"{name}=".encode() + value for name in others), value])
            _ask(control, method, target.encode() + b"?" + query)
        place += 1
    assert place > 40


def test_no_part_of_a_path_is_stumbled_over(control: PlainHttp) -> None:
    at = 0
    for _operation, method, path in _operations():
        places = [part for part in path.split("/") if part.startswith("{")]
        for wanted in places:
            for value in _encoded(at):
                target = path.encode()
                for place in places:
                    filling = value if place == wanted else b"acme"
                    target = target.replace(place.encode(), filling)
                _ask(control, method, target)
            at += 1
    assert at > 15


@pytest.mark.parametrize("operation", BODIES)
def test_no_field_of_a_body_is_stumbled_over(control: PlainHttp, operation: str) -> None:
    method, path = operation.split(" ", 1)
    target = path.replace("{tenant_id}", "acme").encode()
    for place, (of, shape) in enumerate(SHAPES):
        if of == operation:
            for value in (*JSON, *_share(MORE_JSON, place)):
                _ask(control, method, target, [AS_JSON], (shape % value).encode())


@pytest.mark.parametrize("name", HEADERS)
def test_no_header_is_stumbled_over(control: PlainHttp, tcp: PlainHttp, name: str) -> None:
    ours = [] if name == "Authorization" else [(b"Authorization", f"Bearer {_token()}".encode())]
    for text in (*TEXTS, *_share(MORE_TEXTS, HEADERS.index(name))):
        value = text.encode("utf-8", "surrogatepass").replace(b"\0", b"\x01")[:4_000].strip()
        headers = [*ours, (name.encode(), value)]
        for client in (control, tcp):
            _ask(client, "POST", b"/tenants/acme/messages", headers, b'{"payload": 1}')
            if name == "Content-Length":
                client.close()  # what is not of this body would be the next request
            _ask(client, "GET", b"/messages/stream?tenant_id=acme", headers)


def _token(**claims: object) -> str:
    given = {"sub": "ann", "exp": 2**33, "scope": "tenant", "tenant_id": "acme"} | claims
    return jwt.encode(given, SECRET, algorithm="HS256")


@pytest.mark.parametrize("claim", CLAIMS)
def test_no_claim_of_a_token_is_stumbled_over(tcp: PlainHttp, claim: str) -> None:
    base = {"sub": "ann", "exp": 2**33, "scope": "tenant", "tenant_id": "acme"}
    for value in (*JSON, *_share(MORE_JSON, CLAIMS.index(claim))):
        if len(value) > 10_000:
            continue  # a head has no room for it
        members = [
            f"{json.dumps(key)}: {json.dumps(one)}" for key, one in base.items() if key != claim
        ]
        body = "{" + ", ".join([*members, f'"{claim}": {value}']) + "}"
        token = jwt.api_jws.encode(body.encode(), SECRET, algorithm="HS256")
        bearer = (b"Authorization", f"Bearer {token}".encode())
        _ask(tcp, "GET", b"/tenants/acme", [bearer])
        replay = b"/tenants/acme/dead-letters/replay"
        _ask(tcp, "POST", replay, [bearer, AS_JSON], b'{"all": true}')
