"""A link of `tenantry ui`: its code begins one session of the page."""

from __future__ import annotations

import base64
import string
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from tenantry.api.login_codes import LIFE, SESSION, LoginCodes
from tenantry.api.paging import Cursors
from tenantry.http.identity import Identity
from tenantry.http.pool import CLIENT
from tenantry.http.problems import Problem
from tenantry.http.tokens import Principal, Scope, Tokens
from tests.api.fakes import MemoryIdempotencyKeys
from tests.api.page import TOKENS, Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import CURSOR_KEY, SECRET, Served, World, serving

ANN = Principal(name="an", scope=Scope.ADMIN)


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        yield served


def _code(api: Served) -> str:
    answer = api.control.post("/login-codes")
    assert answer.status_code == 201
    code = answer.json()["code"]
    assert isinstance(code, str)
    return code


def test_a_link_begins_one_session_in_the_name_of_who_asked_for_it(api: Served) -> None:
    code = _code(api)
    for _ in range(2):  # to look at it does not use it up
        shown = Browser(api).get("/ui/login", code=code)
        assert (shown.status_code, "set-cookie" in shown.headers) == (200, False)
    refuse_what_a_strict_policy_would_stop(shown.text)
    first, second = (Browser(api).send("/ui/login", code=code) for _ in range(2))
    session, _, kept = first.headers["set-cookie"].removeprefix("tenantry_session=").partition(";")
    assert first.headers["location"] == "../ui"
    assert "HttpOnly; SameSite=Strict" in kept
    assert (second.status_code, "set-cookie" in second.headers) == (401, False)
    assert "has been used" in second.text
    holder = Tokens(SECRET).read(session)
    assert (holder.name.partition("=")[0], holder.scope) == ("uid", Scope.ADMIN)
    assert code not in session
    assert Browser(api, session).get("/ui").status_code == 200


@pytest.mark.parametrize("code", ["x", "x" * 600, "../x", "\0", "", '"><script>alert(1)</script>'])
def test_a_code_that_was_made_up_begins_none(api: Served, code: str) -> None:
    answer = Browser(api).send("/ui/login", code=code)
    assert answer.status_code in {401, 422}
    assert "set-cookie" not in answer.headers
    assert "<script>alert" not in Browser(api).get("/ui/login", code=code).text


def test_who_tries_codes_takes_no_turn_of_a_tenant_that_they_name(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []

    def redeem(_code: str) -> str:
        turns.append(CLIENT.get())
        raise Problem(401, "no such code")

    monkeypatch.setattr(api.app.state.services.login_codes, "redeem", redeem)
    assert Browser(api).send("/ui/login?tenant_id=acme", code="x").status_code == 401
    assert turns == [""]


def test_a_link_is_for_who_may_do_everything_alone(api: Served) -> None:
    for scope, status in ((Scope.ADMIN, 201), (Scope.OPERATE, 403), (Scope.READ, 403)):
        headers = {"Authorization": f"Bearer {token(scope=scope)}"}
        assert api.tcp.post("/login-codes", headers=headers).status_code == status
    assert api.tcp.post("/login-codes").status_code == 401


def test_a_code_is_good_for_a_minute_and_on_every_node() -> None:
    keys, identity = MemoryIdempotencyKeys(), Identity([SECRET])
    one, two = (LoginCodes(Cursors(CURSOR_KEY), keys, identity) for _ in range(2))
    now = datetime.now(UTC)
    fresh, old = one.issue(ANN, now), one.issue(ANN, now - LIFE)
    assert fresh is not None
    assert old is not None
    assert Tokens(SECRET).read(two.redeem(fresh)).name == ANN.name
    for spent in (fresh, old):
        with pytest.raises(Problem, match="older than a minute"):
            one.redeem(spent)


def test_a_code_that_is_written_in_another_way_is_still_good_once() -> None:
    codes = LoginCodes(Cursors(CURSOR_KEY), MemoryIdempotencyKeys(), Identity([SECRET]))
    code = codes.issue(ANN, datetime.now(UTC))
    assert code is not None
    alphabet = string.ascii_letters + string.digits + "-_"
    others = {code[:-1] + last for last in alphabet} | {f"{code}=", f"{code}=="}
    alike = [one for one in others if _sealed(one) == _sealed(code)]
    assert len(alike) > 4
    taken = 0
    for one in alike:
        with suppress(Problem):
            codes.redeem(one)
            taken += 1
    assert taken == 1


def _sealed(code: str) -> bytes:
    return base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))


def test_a_session_does_not_outlive_the_token_that_it_was_asked_for_with() -> None:
    codes = LoginCodes(Cursors(CURSOR_KEY), MemoryIdempotencyKeys(), Identity([SECRET]))
    now = datetime.now(UTC)
    for left in (timedelta(seconds=20), SESSION, timedelta(days=1)):
        holder = Tokens(SECRET).read(TOKENS.issue(subject="ann", now=now, ttl=left))
        code = codes.issue(holder, now)
        assert code is not None
        session = Tokens(SECRET).read(codes.redeem(code))
        assert session.expires_at == int((now + min(left, SESSION)).timestamp())


def test_where_no_token_is_asked_for_there_is_no_code() -> None:
    with serving(World()) as served:
        assert served.control.post("/login-codes").json() == {"code": None}
        assert Written(Browser(served).get("/ui").text).text
