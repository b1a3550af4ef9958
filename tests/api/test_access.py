"""Who may call what, on which listener."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest
from starlette.routing import Route

from tenantry.api.access import TABLE
from tenantry.http.auth import Access
from tenantry.http.tokens import Scope, Tokens
from tests.api.cases import check
from tests.api.dead_letters import message, reject
from tests.api.plain_http import PlainHttp
from tests.api.serving import SECRET, Served, World, serving
from tests.waiting import DEADLINE

TOKENS = Tokens(SECRET)
ABOUT_WHO_CALLS = ("GET", "/whoami")


def _bearer(
    tenant_id: str | None = None, scope: Scope = Scope.ADMIN, *, payloads: bool = False
) -> dict[str, str]:
    token = TOKENS.issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id,
        scope=scope, payloads=payloads,
    )  # fmt: skip
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        served.world.create("other")
        yield served


@pytest.fixture(scope="module")
def spent() -> Iterator[Served]:
    """Where anything may be called: the tenant deleted, the daemon stopped."""
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        yield served


def _status(client: httpx.Client, route: tuple[str, str], tenant_id: str, **more: Any) -> int:
    """Ask a route about a tenant and give the status; a stream is not read to its end."""
    method, template = route
    path = template.replace("{tenant_id}", tenant_id).replace("{asset}", "index.html")
    if template.startswith("/messages"):
        more["params"] = {"tenant_id": tenant_id}
    with client.stream(method, path, **more) as answer:
        if answer.status_code in {401, 403}:
            assert answer.headers["content-type"] == "application/problem+json"
            assert json.loads(answer.read())["status"] == answer.status_code
        return answer.status_code


def _signed(algorithm: str = "HS256", secret: str = SECRET, **claims: Any) -> str:
    full = {"exp": NOW + timedelta(hours=1), "sub": "ann", "scope": "admin"} | claims
    given = {name: value for name, value in full.items() if value is not None}
    return jwt.encode(given, secret, algorithm=algorithm)


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


NOW = datetime.now(UTC)
CLAIMS = {"exp": int(NOW.timestamp()) + 3600, "sub": "ann", "scope": "admin"}
BAD_TOKENS = {
    "garbage": "x",
    "three garbage parts": "x.y.z",
    "no signature asked for": _signed(algorithm="none", secret=""),
    "no signature, in other letters": f"{_part({'alg': 'nOnE'})}.{_part(CLAIMS)}.",
    "another secret": _signed(secret="another secret, and of thirty-two bytes or more"),
    "another algorithm, the same secret": _signed(algorithm="HS512"),
    "a public key's algorithm": f"{_part({'alg': 'RS256'})}.{_part(CLAIMS)}.{_part('signed')}",
    "a key of its own": f"{_part({'alg': 'HS256', 'jwk': {'k': 'eA'}})}.{_part(CLAIMS)}.eA",
    "expired": _signed(exp=NOW - timedelta(minutes=2)),
    "never expiring": _signed(exp=None),
    "not yet valid": _signed(nbf=NOW + timedelta(days=1), exp=NOW + timedelta(days=2)),
    "no scope": _signed(scope=None),
    "another scope": _signed(scope="root"),
    "two scopes": _signed(scope="read admin"),
    "a scope and what is none": _signed(scope="read everything"),
    "payloads alone": _signed(scope="payloads"),
    "scopes in a list": _signed(scope=["admin"]),
    "a tenant's without a tenant": _signed(scope="tenant"),
    "a tenant's with a bad tenant": _signed(scope="tenant", tenant_id="../acme"),
    "claims that are a list": "e30.W10.e30",
    "issued at no time": _signed(iat=[]),
}


def test_every_route_is_in_the_matrix(api: Served) -> None:
    served = {
        (method, route.path)
        for route in api.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    assert served == TABLE.keys()


@pytest.mark.parametrize("token", [None, *BAD_TOKENS])
def test_no_token_and_a_bad_one_reach_nothing_but_what_is_public(
    api: Served, token: str | None
) -> None:
    bearer = b"Bearer " + ("" if token is None else BAD_TOKENS[token]).encode()
    headers = [] if token is None else [(b"Authorization", bearer)]
    statuses = {}
    with PlainHttp(("127.0.0.1", api.server.tcp_port or 0)) as client:
        for route in TABLE:
            method, template = route
            path = template.replace("{tenant_id}", "acme").replace("{asset}", "index.html")
            target = f"{path}?tenant_id=acme" if path.startswith("/messages") else path
            answer = client.ask(method, target.encode(), headers)
            check(answer.status_code, answer.headers, answer.content)
            statuses[route] = answer.status_code
    assert statuses == {
        route: 200 if access is Access.PUBLIC else 401 for route, access in TABLE.items()
    }


def test_a_tenants_token_reaches_its_own_and_nothing_else(api: Served) -> None:
    wrong = []
    for route, access in TABLE.items():
        own = _status(api.tcp, route, "acme", headers=_bearer("acme"))
        foreign = _status(api.tcp, route, "acme", headers=_bearer("other"))
        if access is Access.PUBLIC or route == ABOUT_WHO_CALLS:
            right = own == foreign == 200
        elif access.is_tenants:
            right = own not in {401, 403} and foreign == 403
        else:
            right = own == foreign == 403
        if not right:
            wrong.append((route, access, own, foreign))
    assert wrong == []


def test_a_tenants_token_does_not_tell_whether_another_tenant_exists(api: Served) -> None:
    told = []
    headers = _bearer("acme") | {"X-Request-ID": "same"}
    for method, template in TABLE:
        answers = []
        for tenant_id in ("other", "nobody", "NOT-AN-ID"):
            path = template.replace("{tenant_id}", tenant_id).replace("{asset}", "index.html")
            params = {"tenant_id": tenant_id} if template.startswith("/messages") else None
            answer = api.tcp.request(method, path, params=params, headers=headers)
            answers.append((answer.status_code, answer.content))
        if answers != answers[:1] * 3:
            told.append((method, template, answers))
    assert told == []


CHANGING = {route for route in TABLE if route[0] != "GET"} - {("POST", "/runtime")}
OPERATORS = {
    ("POST", "/tenants/{tenant_id}/pause"), ("POST", "/tenants/{tenant_id}/resume"),
    ("PUT", "/tenants/{tenant_id}/config/concurrency"), ("PUT", "/tenants/{tenant_id}/limits"),
    ("POST", "/tenants/{tenant_id}/dead-letters/replay"),
}  # fmt: skip
SHOWING_PAYLOADS = {
    ("GET", "/messages"), ("GET", "/messages/stream"),
    ("GET", "/tenants/{tenant_id}/messages/{message_id:any}"),
}  # fmt: skip


@pytest.mark.parametrize("payloads", [False, True], ids=["without", "with payloads"])
@pytest.mark.parametrize("scope", [Scope.READ, Scope.OPERATE])
def test_an_operators_token_changes_nothing_but_what_its_scope_names(
    spent: Served, scope: Scope, *, payloads: bool
) -> None:
    refused = CHANGING - (OPERATORS if scope is Scope.OPERATE else set())
    refused |= set() if payloads else SHOWING_PAYLOADS
    headers = _bearer(scope=scope, payloads=payloads)
    statuses = {route: _status(spent.tcp, route, "acme", headers=headers) for route in TABLE}
    assert {route for route, status in statuses.items() if status == 403} == refused
    assert 401 not in statuses.values()
    assert _status(spent.tcp, ("POST", "/nothing"), "acme", headers=headers) == 403


def test_what_is_in_dead_letters_is_shown_to_those_who_may_see_payloads_alone(api: Served) -> None:
    reject(api.world, message("m-1", b"private", headers={"name": "private"}))
    for path in ("/tenants/acme/dead-letters", "/tenants/acme/dead-letters/m-1"):
        for scope in (Scope.READ, Scope.OPERATE):
            bare, whole = (
                api.tcp.get(path, headers=_bearer(scope=scope, payloads=payloads)).json()
                for payloads in (False, True)
            )
            bare, whole = (one["data"][0] if "data" in one else one for one in (bare, whole))
            assert whole["headers"] == {"name": "private"}
            assert bare == {name: whole[name] for name in whole.keys() - {"body", "headers"}}


def test_an_admins_token_is_refused_nowhere(spent: Served) -> None:
    statuses = {route: _status(spent.tcp, route, "acme", headers=_bearer()) for route in TABLE}
    assert [asked for asked in statuses.items() if asked[1] in {401, 403}] == []


@pytest.mark.parametrize("token", ["none", "a bad one", "another tenant's"])
def test_the_control_socket_takes_no_notice_of_tokens(spent: Served, token: str) -> None:
    given = {"none": {}, "a bad one": {"Authorization": "Bearer x.y.z"}}
    headers = given.get(token, _bearer("other"))
    statuses = {route: _status(spent.control, route, "acme", headers=headers) for route in TABLE}
    assert [asked for asked in statuses.items() if asked[1] in {401, 403}] == []


@pytest.mark.parametrize(
    "query", ["tenant_id=acme&tenant_id=other", "tenant_id=other&tenant_id=acme", "tenant_id="]
)
def test_naming_two_tenants_does_not_help(api: Served, query: str) -> None:
    answer = api.tcp.get(f"/messages?{query}", headers=_bearer("acme"))
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/tenants/ACME", "/tenants/acme%2F..%2Fother", "/tenants/%6fther", "//tenants/other", "/x"],
)
def test_no_spelling_of_a_path_helps(api: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=DEADLINE) as raw:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        token = _bearer("acme")["Authorization"]
        raw.sendall(f"{head}Authorization: {token}\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] == b"403"


def test_an_admins_token_reaches_everything(api: Served) -> None:
    assert api.tcp.get("/tenants", headers=_bearer()).status_code == 200
    assert api.tcp.get("/nothing", headers=_bearer()).status_code == 404
    assert api.tcp.post("/tenants/other/pause", headers=_bearer()).status_code == 200
    assert api.world.control.metadata[-1].actor == "ann"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer x.y.z", "Basic YTpi", "bearer é", "Bearer a b"]
)
def test_a_bad_authorization_is_401(api: Served, value: str) -> None:
    answer = api.tcp.get("/tenants", headers={b"Authorization": value.encode()})
    assert answer.status_code == 401


def test_an_expired_token_is_401_and_says_so(api: Served) -> None:
    token = TOKENS.issue(subject="a", now=datetime(2020, 1, 1, tzinfo=UTC), ttl=timedelta(hours=1))
    answer = api.tcp.get("/tenants", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["detail"]) == (401, "the token has expired")
    assert "invalid_token" in answer.headers["www-authenticate"]


def test_an_unknown_path_without_a_token_is_401(api: Served) -> None:
    assert api.tcp.get("/nothing").status_code == 401


def test_a_body_is_not_read_before_the_token(api: Served) -> None:
    answer = api.tcp.post("/tenants", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_the_control_socket_needs_no_token(api: Served) -> None:
    assert api.control.get("/tenants").status_code == 200


def test_no_header_makes_a_tcp_request_one_of_the_control_socket(api: Served) -> None:
    for name in ("tenantry.connection", "tenantry-connection", "X-Listener", "Forwarded"):
        assert api.tcp.get("/tenants", headers={name: "control"}).status_code == 401


def test_without_a_secret_foreign_web_pages_are_refused() -> None:
    with serving(World()) as open_api:
        call = open_api.tcp.get
        assert call("/tenants").status_code == 200
        own = open_api.url
        assert call("/tenants", headers={"Origin": own}).status_code == 200
        for foreign in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
            assert call("/tenants", headers={"Origin": foreign}).status_code == 403
        rebound = {"Host": f"evil.example:{open_api.server.tcp_port}"}
        assert call("/tenants", headers=rebound).status_code == 403
        for local in ("localhost", "localhost:8080", "127.0.0.1", "[::1]:8080"):
            assert call("/tenants", headers={"Host": local}).status_code == 200


def test_a_request_no_listener_has_marked_counts_as_tcp() -> None:
    import asyncio

    async def ask() -> int:
        transport = httpx.ASGITransport(World(jwt_secret=SECRET).app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/tenants")).status_code

    assert asyncio.run(ask()) == 401


def test_without_a_tenant_id_a_tenants_token_reads_its_own_messages(api: Served) -> None:
    for tenant_id in ("acme", "other"):
        api.world.messages.add(tenant_id)
    try:
        own = api.tcp.get("/messages", headers=_bearer("other"))
        assert [one["tenant_id"] for one in own.json()["data"]] == ["other"]
        everything = api.tcp.get("/messages", headers=_bearer())
        assert [one["tenant_id"] for one in everything.json()["data"]] == ["acme", "other"]
    finally:
        api.world.messages.rows.clear()


@pytest.mark.parametrize("message_id", ["m-1", "a/b", "line\nend", "..%2Facme"])
def test_a_tenants_token_shows_its_own_messages_and_no_others(api: Served, message_id: str) -> None:
    path = f"/tenants/other/messages/{quote(message_id, safe='%')}"
    assert api.tcp.get(path, headers=_bearer("acme")).status_code == 403
    assert api.tcp.get(path, headers=_bearer("other")).status_code == 404


def test_what_a_tenants_trouble_is_operators_are_told_and_the_tenant_that_there_is_some(
    api: Served,
) -> None:
    found = "user tenant_acme_producer belongs to the installation neighbours"
    api.world.control.trouble["acme"] = found
    shown = [
        api.tcp.get("/tenants/acme", headers=_bearer(whose, scope)).json()["trouble"]
        for whose, scope in ((None, Scope.ADMIN), (None, Scope.READ), ("acme", Scope.ADMIN))
    ]
    assert shown == [found, found, "it is in trouble; the operator can see why"]
    api.world.control.trouble.clear()
    assert api.tcp.get("/tenants/acme", headers=_bearer("acme")).json()["trouble"] is None


def test_every_token_tells_its_holder_what_it_is_good_for(api: Served) -> None:
    def told(headers: dict[str, str]) -> tuple[object, ...]:
        return tuple(api.tcp.get("/whoami", headers=headers).json().values())

    assert told(_bearer()) == ("ann", "admin", None, True, False)
    assert told(_bearer("acme")) == ("ann", "tenant", "acme", True, False)
    assert told(_bearer(scope=Scope.READ)) == ("ann", "read", None, False, False)
    assert told(_bearer(scope=Scope.OPERATE, payloads=True)) == (
        "ann",
        "operate",
        None,
        True,
        False,
    )


def test_a_session_of_the_page_is_no_token_of_the_api(api: Served) -> None:
    token = _bearer()["Authorization"].removeprefix("Bearer ")
    cookie = {"Cookie": f"tenantry_session={token}"}
    assert api.tcp.get("/tenants", headers=cookie).status_code == 401
    assert api.tcp.get("/ui", headers=cookie).status_code == 200
