"""A provider of identities that lies, is away, slow or odd: nobody is logged in, and told why."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog

from tenantry.http import oidc, page_turns
from tests.api.by_provider import PACE, Here, as_at_first, provided
from tests.api.page import Written, token
from tests.identity_provider import LOOKS_BROKEN_OFF, KeyServer, Signer
from tests.login_provider import CLIENT
from tests.login_provider import SECRET as CLIENT_SECRET
from tests.waiting import DEADLINE

pytestmark = LOOKS_BROKEN_OFF


@pytest.fixture(scope="module")
def shared() -> Iterator[Here]:
    with provided() as here:
        yield here


@pytest.fixture
def here(shared: Here) -> Here:
    return as_at_first(shared)


STRANGER = Signer("one")
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"iss": "https://login.test"}, "another issuer"),
    "another client": ({"aud": "another"}, "another audience"),
    "several clients": ({"aud": [CLIENT, "another"]}, "another client"),
    "for another party": ({"azp": "another"}, "another client"),
    "another nonce": ({"nonce": "x" * 43}, "another login"),
    "no nonce": ({"nonce": None}, "another login"),
    "too old": ({"exp": 1}, "expired"),
    "no end": ({"exp": None}, "no exp"),
    "no time": ({"iat": None}, "no iat"),
    "nobody": ({"sub": None}, "no sub"),
}


@pytest.mark.parametrize(("claims", "says"), LIES.values(), ids=LIES)
def test_a_provider_that_lies_logs_nobody_in(here: Here, claims: dict[str, Any], says: str) -> None:
    here.provider.person |= claims
    _refused(here, says)


def test_an_id_token_that_is_not_signed_by_the_providers_key_logs_nobody_in(here: Here) -> None:
    here.provider.sign = lambda said: STRANGER.token(**said)
    _refused(here, "not one that its provider has signed")
    here.provider.sign = lambda said: "no.token"
    _refused(here, "no JWT")


def _refused(here: Here, says: str) -> None:
    visitor = here.visitor()
    answer = visitor.log_in()
    assert (answer.status_code, visitor.session) == (502, None)
    assert says in Written(answer.text).text


def test_an_answer_of_another_provider_is_none(here: Here) -> None:
    visitor = here.visitor()
    back = httpx.URL(visitor.come_back())
    for other in (back.copy_set_param("iss", "https://login.test"), back.copy_remove_param("iss")):
        answer = visitor.get(str(other))
        assert (answer.status_code, visitor.session) == (502, None)
    assert "/token" not in here.provider.paths


def _answers(here: Here, path: str, status: int, body: bytes) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if urlsplit(request.path).path == path:
            KeyServer.send(request, body, status)
        else:
            here.provider.show(request)

    here.provider.answer = answer


WELL_KNOWN = "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"issuer": "https://login.test"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"authorization_endpoint": "http://login.test/"}, "no address by https"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "no address by https"),
        ({"authorization_endpoint": "https://ann@login.test/"}, "no address by https"),
        ({"authorization_endpoint": "https://login.test/ x"}, "no address by https"),
        ({"authorization_endpoint": "https://login.test/\r\nX: y"}, "no address by https"),
        ({"authorization_endpoint": "https://[/"}, "no address by https"),
        ({"token_endpoint": None}, "no token_endpoint"),
        ({"token_endpoint": 7}, "no token_endpoint"),
        ({"end_session_endpoint": "data:,x"}, "no address by https"),
        ({"token_endpoint_auth_methods_supported": ["private_key_jwt"]}, "no client secret"),
    ],
)
def test_a_provider_that_tells_what_can_not_be_is_not_followed(
    here: Here, told: dict[str, Any], says: str
) -> None:
    here.provider.told = told
    answer = here.visitor().get("ui/oidc")
    assert (answer.status_code, says in Written(answer.text).text) == (502, True)


def test_a_provider_that_is_away_is_told_and_a_token_can_be_pasted(here: Here) -> None:
    visitor = here.visitor()
    for status, body, expected in (
        (500, b"", 503), (404, b"", 503), (200, b"<html>", 502), (302, b"", 503),
    ):  # fmt: skip
        _answers(here, WELL_KNOWN, status, body)
        answer = visitor.get("ui/oidc")
        assert (status, answer.status_code) == (status, expected)
        assert here.provider.issuer not in answer.text
    asked = visitor.get("ui")
    assert (asked.status_code, 'name="token"' in asked.text) == (401, True)


def test_what_a_provider_has_told_holds_for_a_while_when_it_is_away(here: Here) -> None:
    logins = here.logins
    assert here.visitor().get("ui/oidc").status_code == 303
    _answers(here, WELL_KNOWN, 500, b"")
    logins._pace = replace(PACE, fresh=0.0)
    assert here.visitor().get("ui/oidc").status_code == 303
    logins._pace = replace(PACE, fresh=0.0, kept=0.0)
    assert here.visitor().get("ui/oidc").status_code == 503
    here.provider.answer = here.provider.show
    assert here.visitor().get("ui/oidc").status_code == 303


def test_many_who_wait_for_a_provider_ask_it_once_and_hear_the_same(here: Here) -> None:
    held, asked = threading.Event(), threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        here.provider.paths.append(request.path)
        asked.set()
        held.wait(DEADLINE)
        KeyServer.send(request, b"", 500)

    here.logins._pace = replace(PACE, again=3600.0)
    here.provider.answer = answer
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(here.api.tcp.get, "/ui/oidc") for _ in range(6)]
        assert asked.wait(DEADLINE)
        assert here.api.tcp.get("/healthz").status_code == 200
        held.set()
        assert {one.result(DEADLINE).status_code for one in asking} == {503}
    assert here.provider.paths == [WELL_KNOWN]


def test_who_makes_tokens_up_is_one_of_those_who_have_none_and_keeps_no_session_waiting(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, waiting, refused = 6, 4, 7
    monkeypatch.setattr(page_turns, "WAITING", waiting)
    monkeypatch.setattr(here.api.page_turns._strangers, "_patience", DEADLINE)
    held = threading.Event()

    def wait(request: BaseHTTPRequestHandler) -> None:
        held.wait(DEADLINE)
        here.provider.show(request)

    def ask(path: str, session: str) -> int:
        headers = {"Cookie": f"tenantry_session={session}"}
        return here.api.tcp.get(path, headers=headers).status_code

    here.provider.answer = wait
    stranger, other = Signer("one"), here.provider.signer
    made_up = [
        *(f"made-up-{number}.x.y" for number in range(served + waiting + refused - 3)),
        stranger.token(iss=here.provider.issuer), Signer("new").token(), other.token(aud="other"),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(made_up)) as pool:
        asked = [pool.submit(ask, "/ui/oidc", one) for one in made_up]
        try:
            ended = (one.result(DEADLINE) for one in as_completed(asked, DEADLINE))
            assert [next(ended) for _ in range(refused)] == [429] * refused
            assert ask("/ui", "another.x.y") == 429
            assert ask("/ui", token()) == 200
            assert ask("/ui", other.token(iss=here.provider.issuer, groups=["ops"])) == 200
            assert here.api.tcp.get("/healthz").status_code == 200
        finally:
            held.set()
        assert [one.result(DEADLINE) for one in asked].count(303) == served + waiting
    assert ask("/ui", "another.x.y") == 401


@pytest.mark.parametrize(
    ("status", "told", "expected", "says"),
    [
        (400, {"error": "invalid_grant"}, 400, "does not take the code"),
        (401, {"error": "invalid_client"}, 502, "does not know this service"),
        (400, {"error": "unauthorized_client"}, 502, "does not know this service"),
        (401, None, 502, "does not know this service"),
        (400, {"error": "odd"}, 502, "status 400"),
        (400, {"error": {"a": 1}}, 502, "status 400"),
        (500, None, 503, "exchanges no code now"),
        (302, None, 503, "exchanges no code now"),
        (200, {}, 502, "without an ID token"),
        (200, {"id_token": 7}, 502, "without an ID token"),
        (200, [], 502, "without an ID token"),
    ],
)
def test_whatever_is_answered_for_a_code_is_told(
    here: Here, status: int, told: object, expected: int, says: str
) -> None:
    visitor = here.visitor()
    back = visitor.come_back()
    _answers(here, "/token", status, b"" if told is None else json.dumps(told).encode())
    answer = visitor.get(back)
    assert (answer.status_code, visitor.session) == (expected, None)
    assert says in Written(answer.text).text


def test_what_anybody_may_bring_about_is_in_the_log_once_in_a_while(here: Here) -> None:
    here.logins._pace = replace(PACE, again=3600.0)
    _answers(here, "/token", 401, b"")
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert here.visitor().log_in().status_code == 502
    assert [one["event"] for one in logged if one["log_level"] != "debug"] == [
        "identity.client_refused"
    ]


def test_a_client_proves_itself_as_the_provider_wants_it(here: Here) -> None:
    for told, secret in (
        ({}, CLIENT_SECRET),
        ({"token_endpoint_auth_methods_supported": ["client_secret_post"]}, CLIENT_SECRET),
        ({"token_endpoint_auth_methods_supported": ["none"]}, ""),
    ):
        here.provider.told, here.provider.secret = told, secret or None
        here.register(client_secret=secret)
        assert here.visitor().log_in().status_code == 200
    here.provider.told, here.provider.secret = {}, "another"
    here.register(client_secret=CLIENT_SECRET)
    _refused(here, "does not know this service")


def test_so_many_codes_are_exchanged_at_once_and_the_page_goes_on(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "MOST_AT_ONCE", 1)
    held, waits = threading.Event(), threading.Event()
    first, second = here.visitor(), here.visitor()
    codes = [first.come_back(), second.come_back()]

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/token":
            waits.set()
            held.wait(DEADLINE)
        here.provider.show(request)

    here.provider.answer = answer
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(first.get, codes[0])
        try:
            assert waits.wait(DEADLINE)
            refused = second.get(codes[1])
            assert (refused.status_code, "too many log in" in refused.text) == (503, True)
            assert here.api.tcp.get("/healthz").status_code == 200
        finally:
            held.set()
        assert slow.result(DEADLINE).status_code == 200
    assert second.get(codes[1]).status_code == 200
