"""Who may call what, on which listener."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from starlette.routing import Route

from tenantry.api.access import TABLE, Access
from tenantry.api.tokens import Tokens
from tests.fakes.api import SECRET, Served, World, serving

TOKENS = Tokens(SECRET)


def _bearer(tenant_id: str | None = None) -> dict[str, str]:
    token = TOKENS.issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id
    )
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        served.world.create("other")
        yield served


def _routes(api: Served) -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in api.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    ]


def _path(template: str, tenant_id: str) -> str:
    return template.replace("{tenant_id}", tenant_id).replace("{asset}", "index.html")


def test_without_a_token_every_route_but_the_public_ones_is_401(api: Served) -> None:
    routes = _routes(api)
    assert len(routes) == len(TABLE)
    for method, template in routes:
        answer = api.tcp.request(method, _path(template, "acme"))
        if TABLE[method, template] is Access.PUBLIC:
            assert answer.status_code == 200, template
        else:
            assert answer.status_code == 401, template
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["status"] == 401


def test_a_tenants_token_reaches_its_own_and_nothing_else(api: Served) -> None:
    mine = _bearer("acme")
    for method, template in _routes(api):
        access = TABLE[method, template]
        if access is Access.PUBLIC:
            continue
        path, foreign = _path(template, "acme"), _path(template, "other")
        own = {"tenant_id": "acme"} if template == "/messages" else {}
        theirs = {"tenant_id": "other"} if template == "/messages" else {}
        answer = api.tcp.request(method, path, params=own, headers=mine)
        if access is Access.TENANT:
            assert answer.status_code not in {401, 403}, template
        else:
            assert answer.status_code == 403, template
        answer = api.tcp.request(method, foreign, params=theirs, headers=mine)
        assert answer.status_code == 403, template
        assert answer.headers["content-type"] == "application/problem+json"


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
    with socket.create_connection(("127.0.0.1", api.server.tcp_port or 0), timeout=10) as raw:
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
