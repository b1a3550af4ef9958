"""A tenant created again under a used id is another one: nothing of the former reaches it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from tenantry.api.access import TABLE
from tenantry.http.tokens import Principal, Scope, Tokens
from tests.api.serving import SECRET, Served, World, serving

TOKENS = Tokens(SECRET)
SINCE = datetime(2030, 1, 1, 12, 0, 7, 500_000, tzinfo=UTC)


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        yield served


def token(issued_at: float | None, tenant_id: str | None = "acme") -> dict[str, str]:
    claims: dict[str, Any] = {"exp": datetime.now(UTC) + timedelta(hours=1), "scope": "admin"}
    if tenant_id is not None:
        claims |= {"scope": "tenant", "tenant_id": tenant_id}
    if issued_at is not None:
        claims["iat"] = issued_at
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}


ADMIN = token(None, None)


def again(api: Served, *, retain: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Delete the tenant and make another; give tokens of before and after that."""
    before = token(api.world.directory.get("acme").updated_at.timestamp())  # type: ignore[union-attr]
    gone = api.control.delete("/tenants/acme", params={"retain": str(retain).lower()})
    assert gone.status_code == 204
    api.world.create("acme")
    return before, token(datetime.now(UTC).timestamp())


def test_an_incarnation_is_shown(api: Served) -> None:
    assert api.control.get("/tenants/acme").json()["incarnation"] == 1
    again(api)
    assert api.control.get("/tenants/acme").json()["incarnation"] == 2


@pytest.mark.parametrize(
    "route", [route for route, access in TABLE.items() if access.is_tenants], ids=" ".join
)
@pytest.mark.parametrize("retain", [False, True])
def test_a_formers_token_is_refused_by_every_route_it_was_good_for(
    api: Served, route: tuple[str, str], retain: bool
) -> None:
    method, template = route
    path = re.sub(r"\{message_id:any\}|\{letter_id\}", "m-1", template)
    path = path.replace("{tenant_id}", "acme")
    more: dict[str, Any] = {}
    if path.startswith("/messages"):
        more["params"] = {"tenant_id": "acme"}
    if method != "GET":
        dead_letters = path.endswith(("replay", "dead-letters"))
        more["json"] = {"all": True} if dead_letters else {"payload": 1}
    api.world.messages.add("acme")
    old, new = again(api, retain=retain)
    api.world.messages.add("acme", id="m-1")

    def status(headers: dict[str, str]) -> tuple[int, str]:
        with api.tcp.stream(method, path, headers=headers, **more) as answer:
            return answer.status_code, "" if answer.is_success else answer.read().decode()

    code, detail = status(old)
    assert (code, "created anew" in detail) == (401, True)
    assert status(token(None))[0] == 401
    assert status(new)[0] not in {401, 403}
    assert status(ADMIN)[0] not in {401, 403}


@pytest.mark.parametrize(
    ("incarnation", "issued_at", "former"),
    [
        (1, None, False),
        (1, 0.0, False),
        (2, None, True),
        (2, SINCE.timestamp() - 1e-3, True),
        (2, SINCE.timestamp(), False),
        (2, SINCE.timestamp() + 1e-3, False),
        (2, int(SINCE.timestamp()) - 1, True),
        (2, int(SINCE.timestamp()), False),
    ],
)
def test_a_token_is_a_formers_if_it_is_older_than_the_tenant(
    incarnation: int, issued_at: float | None, former: bool
) -> None:
    given = None if issued_at is None else float(issued_at)
    who = Principal(name="a", scope=Scope.TENANT, tenant_id="acme", issued_at=given)
    assert who.is_former(incarnation, SINCE) == former
    assert who.is_former(incarnation, None) == (incarnation > 1)
    admin = Principal(name="a", scope=Scope.ADMIN, issued_at=given)
    assert not admin.is_former(incarnation, SINCE)


def test_a_token_that_is_issued_here_tells_its_time_to_the_fraction() -> None:
    now = datetime.now(UTC).replace(microsecond=123_456)
    issued = TOKENS.issue(subject="a", now=now, ttl=timedelta(hours=1), tenant_id="acme")
    assert TOKENS.read(issued).issued_at == pytest.approx(now.timestamp(), abs=1e-6)


@pytest.mark.parametrize("topic", [None, "default"])
def test_what_was_retained_is_on_no_page_of_the_next_tenants_and_an_admin_still_reads_it(
    api: Served, topic: str | None
) -> None:
    params: dict[str, Any] = {"tenant_id": "acme"} | ({"topic": topic} if topic else {})
    api.world.messages.add("acme", payload='"old"')
    _, new = again(api, retain=True)
    for headers in (new, ADMIN):
        assert api.tcp.get("/messages", params=params, headers=headers).json()["data"] == []
    assert api.tcp.get("/tenants/acme/messages/m-1", headers=new).status_code == 404
    api.world.messages.add("acme", payload='"new"')
    first, second = (
        api.tcp.get("/messages", params=params | {"incarnation": n}, headers=ADMIN).json()["data"]
        for n in (1, 2)
    )
    assert [one["payload"] for one in first + second] == ["old", "new"]
    one = api.tcp.get("/tenants/acme/messages/m-1?incarnation=1", headers=ADMIN)
    assert one.json()["payload"] == "old"
    for n in (3, 2**31 - 1):
        missing = api.tcp.get("/messages", params=params | {"incarnation": n}, headers=ADMIN)
        assert missing.status_code == 404
    for path in ("/messages?incarnation=1", "/tenants/acme/messages/m-1?incarnation=1"):
        assert api.tcp.get(path, headers=new).status_code == 403
    assert api.tcp.get("/messages?incarnation=1", headers=ADMIN).status_code == 422
    everything = api.tcp.get("/messages", headers=ADMIN).json()["data"]
    assert [one["payload"] for one in everything] == ["new"]


def test_a_formers_cursors_are_400_and_say_why(api: Served) -> None:
    for _ in range(3):
        api.world.messages.add("acme")
    page = {"tenant_id": "acme", "limit": "1"}
    first = api.control.get("/messages", params=page).json()
    events = api.control.get("/tenants/acme/events", params={"limit": 1}).json()["next_cursor"]
    own = token(datetime.now(UTC).timestamp())
    own_events = api.tcp.get("/tenants/acme/events?limit=1", headers=own).json()["next_cursor"]
    _, new = again(api)
    for _ in range(3):
        api.world.messages.add("acme")
    for name in ("next_cursor", "follow_cursor"):
        for path in ("/messages", "/messages/stream"):
            query = {"tenant_id": "acme", "cursor": first[name]}
            answer = api.control.get(path, params=query)
            assert answer.status_code == 400
            assert "former tenant's" in answer.json()["detail"]
    answer = api.tcp.get("/tenants/acme/events", params={"cursor": own_events}, headers=new)
    assert (answer.status_code, "former" in answer.json()["detail"]) == (400, True)
    # An admin's lead on, through all the tenants that have had the id.
    further = api.control.get("/tenants/acme/events", params={"cursor": events}).json()["data"]
    assert [one["version"] for one in further] == [2, 3, 4, 5, 6]
    # And the new one's cursors are good.
    cursor = api.control.get("/messages", params=page).json()["next_cursor"]
    assert api.control.get("/messages", params=page | {"cursor": cursor}).status_code == 200


def test_a_cursor_of_all_tenants_begins_anew_in_one_that_is_another_by_then(api: Served) -> None:
    for _ in range(3):
        api.world.messages.add("acme")
    cursor = api.control.get("/messages", params={"limit": 2}).json()["next_cursor"]
    again(api)
    api.world.messages.add("acme", payload='"new"')
    found = api.control.get("/messages", params={"limit": 2, "cursor": cursor}).json()["data"]
    assert [one["payload"] for one in found] == ["new"]


def test_a_tenant_sees_its_own_events_and_its_own_past(api: Served) -> None:
    _, new = again(api)
    every = api.control.get("/tenants/acme/events").json()["data"]
    own = api.tcp.get("/tenants/acme/events", headers=new).json()["data"]
    assert own == every[4:]
    assert [one["type"] for one in own] == ["TenantCreated", "TenantProvisioned"]
    for version, status in ((1, 404), (4, 404), (5, 200)):
        asked = f"/tenants/acme?at={version}"
        assert api.tcp.get(asked, headers=new).status_code == status
        assert api.control.get(asked).status_code == 200


def test_who_waits_for_events_gets_none_of_the_next_tenants(api: Served) -> None:
    own = token(datetime.now(UTC).timestamp())
    cursor = api.tcp.get("/tenants/acme/events", headers=own).json()["next_cursor"]
    api.world.control.error = None
    read, seen = api.world.journal.read_tenant, []

    def late(*arguments: Any, **named: Any) -> Any:
        """The tenant is made anew between the look at it and the look at its events."""
        if not seen:
            seen.append(again(api))
        return read(*arguments, **named)

    api.world.journal.read_tenant = late  # type: ignore[method-assign]
    page = api.tcp.get("/tenants/acme/events", params={"cursor": cursor}, headers=own).json()
    assert [one["type"] for one in page["data"]] == ["DeletionRequested", "TenantDeleted"]


@pytest.mark.parametrize("here", [True, False], ids=["at work here", "at work elsewhere"])
def test_a_stream_ends_when_the_id_is_anothers(
    api: Served, monkeypatch: pytest.MonkeyPatch, *, here: bool
) -> None:
    if not here:
        monkeypatch.setattr(api.world.control, "runtime", lambda _: None)
    api.world.messages.add("acme")
    own = token(datetime.now(UTC).timestamp())
    query = {"tenant_id": "acme", "cursor": _follow(api)}
    with api.tcp.stream("GET", "/messages/stream", params=query, headers=own) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines) == "retry: 1000"
        again(api, retain=True)
        api.world.messages.add("acme", payload='"secret"')
        api.world.messages.add("acme", payload='"secret"')
        assert not [line for line in lines if "secret" in line]


def _follow(api: Served) -> str:
    page = api.control.get("/messages", params={"tenant_id": "acme"}).json()
    return str(page["follow_cursor"])


def test_an_idempotency_key_of_the_formers_is_none_of_the_next_ones(api: Served) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.control.post("/tenants/acme/messages", json={"payload": 1}, headers=headers)
    again(api)
    other = api.control.post("/tenants/acme/messages", json={"payload": 2}, headers=headers)
    assert other.status_code == 202
    assert other.json() != first.json()
    same = api.control.post("/tenants/acme/messages", json={"payload": 2}, headers=headers)
    assert same.json() == other.json()
