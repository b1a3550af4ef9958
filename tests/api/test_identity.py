"""Whose tokens are taken, over the real listeners."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenantry.api import streams
from tenantry.http.fetching import trusting
from tenantry.http.identity import Identity
from tenantry.http.provider import Provider, ProviderTokens
from tenantry.http.provider_keys import Pace, ProviderKeys
from tenantry.http.tokens import Principal, Tokens
from tests.api.page import Browser
from tests.api.serving import SECRET, Served, World, serving
from tests.identity_provider import (
    AUDIENCE,
    ISSUER,
    LOOKS_BROKEN_OFF,
    KeyServer,
    Signer,
    key_server,
)
from tests.waiting import DEADLINE, eventually

pytestmark = LOOKS_BROKEN_OFF

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


@pytest.mark.parametrize("secrets", [[NEW], [NEW, SECRET]])
def test_a_stream_ends_when_the_secret_of_its_token_is_taken_out(
    api: Served, monkeypatch: pytest.MonkeyPatch, secrets: list[str]
) -> None:
    monkeypatch.setattr(streams, "LOOK_AT_TOKEN_SECONDS", 0.0)
    headers, query = bearer(SECRET, tenant_id="acme"), {"tenant_id": "acme"}
    with api.tcp.stream("GET", "/messages/stream", params=query, headers=headers) as answer:
        parts = answer.iter_bytes()
        assert next(parts).startswith(b"retry: 1000")
        api.world.identity.trust(secrets)
        if SECRET in secrets:
            api.world.messages.add("acme", payload='"later"')
            api.world.control.stored["acme"] = 1
            assert b"later" in next(parts)
        else:
            assert list(parts) == []


@dataclass(frozen=True, slots=True)
class Provided:
    """An API that takes tokens of a provider's, and the provider."""

    api: Served
    server: KeyServer
    signer: Signer

    def get(self, path: str, signer: Signer | None = None, **claims: Any) -> tuple[int, Any]:
        token = (signer or self.signer).token(**claims)
        answer = self.api.tcp.get(path, headers={"Authorization": f"Bearer {token}"})
        return answer.status_code, answer.json()


@contextmanager
def provided(**rules: Any) -> Iterator[Provided]:
    signer = Signer("one")
    with key_server(signer) as server:
        provider = Provider(
            jwks_url=server.url, issuer=ISSUER, audience=[AUDIENCE], **{"scopes": {}, **rules}
        )
        pace = Pace(every=3600.0, again=0.01, look=DEADLINE, patience=DEADLINE)
        keys = ProviderKeys(server.url, tls=trusting(""), pace=pace)
        world = World()
        world.identity = Identity([SECRET], ProviderTokens(provider, keys))
        thread = threading.Thread(target=keys.run, name="provider-keys")
        thread.start()
        try:
            with serving(world) as api:
                world.create("acme")
                world.create("globex")
                yield Provided(api, server, signer)
        finally:
            keys.stop()
            thread.join(DEADLINE)


def test_a_providers_tokens_are_held_to_the_same_rules_as_ours() -> None:
    with provided() as here:
        assert here.get("/tenants")[0] == 200
        assert here.get("/tenants", scope="read")[0] == 200
        assert here.get("/status", scope="openid read")[0] == 200
        own = {"scope": "tenant", "tenant_id": "acme"}
        assert here.get("/tenants/acme", **own)[0] == 200
        assert here.get("/tenants/globex", **own)[0] == 403
        assert here.get("/tenants", **own)[0] == 403
        assert here.get("/messages?tenant_id=acme", scope="read")[0] == 403
        assert here.get("/messages?tenant_id=acme", scope="read payloads")[0] == 200
        assert here.api.tcp.get("/tenants").status_code == 401
        assert here.api.tcp.get("/tenants", headers=bearer(SECRET)).status_code == 200


def test_it_is_told_why_a_providers_token_is_not_good() -> None:
    with provided(scope_claim="roles", scopes={"ops": "operate"}) as here:
        status, told = here.get("/tenants", roles=["admin"])
        assert (status, "roles has no value that security.scopes maps" in told["detail"]) == (
            403,
            True,
        )
        status, told = here.get("/tenants", roles=["ops"], aud="another")
        assert (status, told["detail"]) == (401, "the token is for another audience")
        status, told = here.get("/tenants", Signer("unknown"), roles=["ops"])
        assert (status, "does not have" in told["detail"]) == (401, True)
        here.server.answer = lambda request: here.server.send(request, b"", 500)
        status, told = here.get("/tenants", Signer("new"), roles=["ops"])
        assert (status, told["type"]) == (503, "urn:problem-type:tenantry:identity-unavailable")
        assert here.get("/tenants", roles=["ops"])[0] == 200
        assert here.api.tcp.get("/healthz").status_code == 200


def test_a_providers_token_of_a_former_tenant_reaches_nothing_of_the_next_one() -> None:
    with provided() as here:
        made = datetime.now(UTC).timestamp()
        own = {"scope": "tenant", "tenant_id": "acme", "exp": made + 3600}
        before = {**own, "iat": int(made) - 2}
        assert here.get("/tenants/acme", **before)[0] == 200
        here.api.control.delete("/tenants/acme")
        here.api.world.create("acme")
        status, told = here.get("/tenants/acme", **before)
        assert (status, "created anew" in told["detail"]) == (401, True)
        assert here.get("/tenants/acme", **{**own, "iat": None})[0] == 401
        assert here.get("/tenants/acme", **{**own, "iat": datetime.now(UTC).timestamp()})[0] == 200


def test_keys_are_replaced_under_load_and_no_answer_is_wrong() -> None:
    """Whose key is shown is let in at once; whose key was taken away is not, once that shows."""
    with provided() as here:
        ended = threading.Event()
        current = [here.signer]
        wrong: list[object] = []

        def ask() -> None:
            while not ended.is_set():
                status, told = here.get("/tenants", current[-1])
                if status != 200:
                    wrong.append(told)

        stranger = Signer("one")
        askers = [threading.Thread(target=ask) for _ in range(2)]
        for one in askers:
            one.start()
        try:
            for number in range(5):
                new = Signer(f"key {number}")
                here.server.show_keys(*current, new)
                current.append(new)
                assert here.get("/tenants", new)[0] == 200
                assert here.get("/tenants", stranger)[0] == 401
        finally:
            ended.set()
            for one in askers:
                one.join(DEADLINE)
        assert wrong == []
        here.server.show_keys(current[-1])
        here.api.world.identity.trust([SECRET])
        eventually(lambda: here.get("/tenants", current[0])[0] == 401, what="the first is gone")
        assert here.get("/tenants", current[-1])[0] == 200


def test_a_providers_token_begins_a_session_of_the_page() -> None:
    with provided() as here:
        own = here.signer.token(scope="openid read")
        answer = Browser(here.api).send("/ui/login", token=own)
        assert (answer.status_code, "set-cookie" in answer.headers) == (303, True)
        assert "acme" in Browser(here.api, own).get("/ui").text
        rightless = here.signer.token(scope="openid")
        assert "gives no rights here" in Browser(here.api).send("/ui/login", token=rightless).text
        here.server.answer = lambda request: here.server.send(request, b"", 500)
        answer = Browser(here.api).send("/ui/login", token=Signer("new").token())
        assert "set-cookie" not in answer.headers
        assert "provider can" in answer.text
