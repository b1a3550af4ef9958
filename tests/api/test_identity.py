"""Whose tokens are taken, over the real listeners."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tenantry.http.tokens import Principal, Tokens
from tests.api.serving import SECRET, Served, World, serving

NEW = "a new secret that takes the place of the old one"


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        yield served


def bearer(*secrets: str, **said: str) -> dict[str, str]:
    token = Tokens(*secrets).issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), **said
    )
    return {"Authorization": f"Bearer {token}"}


def test_secrets_are_replaced_while_it_runs_and_no_token_is_refused_in_between(api: Served) -> None:
    def status(headers: dict[str, str]) -> int:
        return api.tcp.get("/tenants", headers=headers).status_code

    trust, old = api.world.identity.trust, bearer(SECRET)
    trust([SECRET, NEW])
    assert (status(old), status(bearer(NEW))) == (200, 200)
    trust([NEW, SECRET])
    assert (status(old), status(bearer(NEW, SECRET))) == (200, 200)
    trust([NEW])
    assert (status(old), status(bearer(NEW))) == (401, 200)
    assert status({}) == 401


def test_a_stream_ends_with_its_token(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    def good_for(who: Principal, _now: datetime) -> float:
        ends.append(who.expires_at)
        return 0.05

    monkeypatch.setattr(Principal, "good_for", good_for)
    headers = bearer(SECRET, tenant_id="acme")
    query = {"tenant_id": "acme"}
    with api.tcp.stream("GET", "/messages/stream", params=query, headers=headers) as answer:
        assert answer.read().startswith(b"retry: 1000")
    (end,) = ends
    assert end is not None
    assert timedelta(minutes=50).total_seconds() < end - datetime.now(UTC).timestamp() < 3601
