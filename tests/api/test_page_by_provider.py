"""People log in to the page by a provider of identities: there, and back with a code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
import structlog

from tenantry.http.oidc import Logins
from tenantry.http.tokens import Tokens
from tenantry.page import logging_in
from tests.api.by_provider import PACE, PREFIX, Here, as_at_first, provided
from tests.api.page import Written
from tests.api.serving import SECRET, World, serving
from tests.login_provider import CLIENT
from tests.login_provider import SECRET as CLIENT_SECRET
from tests.waiting import DEADLINE


@pytest.fixture(scope="module")
def shared() -> Iterator[Here]:
    with provided() as here:
        yield here


@pytest.fixture
def here(shared: Here) -> Here:
    return as_at_first(shared)


def test_somebody_logs_in_behind_a_prefix_and_comes_to_the_page_they_wanted(here: Here) -> None:
    visitor = here.visitor()
    answer = visitor.log_in("ui/tenants/acme")
    assert answer.status_code == 200
    # A page and no redirection, with which a strict cookie would not be sent.
    (refresh,) = re.findall(r'http-equiv="refresh" content="0; url=([^"]*)"', answer.text)
    wanted = urljoin(str(answer.url), refresh)
    assert wanted == f"{here.address}/ui/tenants/acme"
    shown = visitor.get(wanted)
    assert (shown.status_code, "<bdi>ann</bdi>, operate" in shown.text) == (200, True)
    begun, ended = answer.headers.get_list("set-cookie")
    assert begun == f"tenantry_session={visitor.session}; HttpOnly; SameSite=Strict"
    assert "tenantry_login=; HttpOnly; SameSite=Lax; Max-Age=0" in ended
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert {"name": "ann", "scope": "operate", "payloads": False}.items() <= here.whoami(
        visitor.session
    ).items()


def test_what_goes_to_the_provider_is_what_the_protocol_asks_for(here: Here) -> None:
    visitor = here.visitor()
    led = visitor.get(visitor.way())
    cookie = led.headers["set-cookie"]
    assert re.fullmatch(
        r"tenantry_login=[\w-]{43}; HttpOnly; SameSite=Lax; Max-Age=600", cookie, re.ASCII
    )
    url = urlsplit(led.headers["location"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{here.provider.issuer}/authorize"
    asked = {name: one for name, (one,) in parse_qs(url.query).items()}
    assert {
        "realm": "one", "response_type": "code", "client_id": CLIENT, "scope": "openid groups",
        "redirect_uri": f"{here.address}/ui/callback", "code_challenge_method": "S256",
    }.items() <= asked.items()  # fmt: skip
    secret = cookie.partition("=")[2].partition(";")[0]
    assert secret not in led.headers["location"]
    assert led.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("groups", "org", "scope", "payloads", "tenant"),
    [
        (["ops", "deep"], None, "operate", True, None),
        (["boss", "other"], None, "admin", True, None),
        (["shop"], "acme", "tenant", True, "acme"),
        ("ops", None, "operate", False, None),
    ],
)
def test_what_somebody_may_do_is_what_their_id_token_says(
    here: Here, groups: Any, org: str | None, scope: str, payloads: bool, tenant: str | None
) -> None:
    here.provider.person = {"sub": "bob", "groups": groups, "org": org}
    visitor = here.visitor()
    assert visitor.log_in().status_code == 200
    told = here.whoami(visitor.session)
    assert (told["scope"], told["payloads"], told["tenant_id"]) == (scope, payloads, tenant)


def test_a_session_ends_with_the_id_token_and_after_a_time_of_ours(here: Here) -> None:
    now = datetime.now(UTC)
    for good, most in ((timedelta(minutes=5), 8 * 3600), (timedelta(days=9), 600)):
        here.register(session=timedelta(seconds=most))
        here.provider.person = {"sub": "ann", "groups": ["ops"], "exp": now + good}
        visitor = here.visitor()
        assert visitor.log_in().status_code == 200
        session = Tokens(SECRET).read(visitor.session or "")
        wanted = now + min(good, timedelta(seconds=most))
        assert session.expires_at is not None
        assert 0 <= session.expires_at - int(wanted.timestamp()) < DEADLINE


def test_who_was_logged_in_as_a_tenant_is_not_logged_in_as_the_next_one_of_its_id(
    here: Here,
) -> None:
    here.provider.person = {"sub": "shop", "groups": ["shop"], "org": "globex"}
    visitor = here.visitor()
    here.provider.person["iat"] = int(datetime.now(UTC).timestamp()) - 60
    assert visitor.log_in().status_code == 200
    here.api.control.delete("/tenants/globex")
    here.api.world.create("globex")
    assert visitor.get("ui/tenants/globex").status_code == 401
    assert here.visitor().log_in().status_code == 403


def test_logging_out_forgets_the_session_and_leads_to_where_one_logs_out_there(here: Here) -> None:
    visitor = here.visitor()
    visitor.log_in()
    left = visitor.post("ui/logout")
    assert (left.status_code, left.headers["location"]) == (303, "../ui/logged-out")
    assert visitor.session is None
    told = visitor.get("ui/logged-out")
    assert told.status_code == 200
    assert "127.0.0.1 may still know you" in Written(told.text).text
    (way,) = [one for one in Written(told.text).links() if "oidc-logout" in one]
    led = visitor.get(urljoin(str(told.url), way))
    url = urlsplit(led.headers["location"])
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{here.provider.issuer}/end"
    assert parse_qs(url.query) == {
        "client_id": [CLIENT], "post_logout_redirect_uri": [f"{here.address}/ui/login"],
    }  # fmt: skip
    here.provider.told = {"end_session_endpoint": None}
    here.register()
    assert "still know you" not in visitor.get("ui/logged-out").text
    assert visitor.get("ui/oidc-logout").status_code == 404


def test_what_another_browser_has_begun_is_ended_by_no_other(here: Here) -> None:
    attacker, victim = here.visitor(), here.visitor()
    for before in (lambda: None, victim.way, lambda: victim.get(victim.way())):
        before()
        answer = victim.get(attacker.come_back(), foreign=True)
        assert (answer.status_code, victim.session) == (400, None)
        assert "not begun in this browser" in answer.text
    assert "/token" not in here.provider.paths


def test_two_tabs_of_a_browser_do_not_get_into_each_others_way(here: Here) -> None:
    visitor = here.visitor()
    first, second = visitor.come_back(), visitor.come_back("ui/nodes")
    assert visitor.get(first, foreign=True).status_code == 200
    assert visitor.get(second, foreign=True).status_code == 400  # its browser has a session by now
    assert visitor.get("ui/nodes").status_code == 200


def test_a_code_is_good_once_and_a_state_for_ten_minutes(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = here.visitor()
    back = visitor.come_back()
    cookie = {"Cookie": f"tenantry_login={visitor.client.cookies['tenantry_login']}"}
    assert visitor.get(back).status_code == 200
    again = httpx.get(back.replace(PREFIX, ""), headers=cookie, trust_env=False, timeout=DEADLINE)
    assert (again.status_code, "set-cookie" in again.headers) == (400, False)
    assert "it was used, or is too old" in again.text
    late = here.visitor()
    back = late.come_back()
    for shift in (601, -60):
        monkeypatch.setattr(logging_in, "time", _Clock(shift))
        assert late.get(back).status_code == 400
    monkeypatch.undo()
    assert late.get(back).status_code == 200


class _Clock:
    def __init__(self, shift: float) -> None:
        self._shift = shift

    def time(self) -> float:
        return datetime.now(UTC).timestamp() + self._shift


@pytest.mark.parametrize(
    "query",
    ["", "?code=x", "?code=x&state=", "?state=x&code=x", "?error=access_denied",
     "?code=x&state=%00", "?code=x&state=" + "A" * 600],
)  # fmt: skip
def test_who_comes_back_from_nowhere_is_not_logged_in(here: Here, query: str) -> None:
    visitor = here.visitor()
    visitor.get(visitor.way())
    answer = visitor.get(f"ui/callback{query}", foreign=True)
    assert (answer.status_code, visitor.session) == (400, None)


@pytest.mark.parametrize(
    "to", ["//evil.test", "https://evil.test/", "ui/../..", "\\evil", "u" * 400, "ui/" + "x" * 400,
           '"><script>'],
)  # fmt: skip
def test_who_logs_in_is_led_to_nowhere_but_the_page(here: Here, to: str) -> None:
    visitor = here.visitor()
    led = visitor.get(str(httpx.URL(f"{here.address}/ui/oidc", params={"to": to})))
    back = visitor.get(led.headers["location"]).headers["location"]
    answer = visitor.get(back)
    assert 'content="0; url=../ui"' in answer.text
    assert "evil" not in answer.text


def test_no_header_chooses_where_codes_go(here: Here) -> None:
    headers = {"Host": "evil.test", "X-Forwarded-Host": "evil.test", "Forwarded": "host=evil.test"}
    answer = here.api.tcp.get("/ui/oidc", headers=headers)
    assert answer.status_code == 303
    assert "evil" not in answer.headers["location"]
    assert "evil" not in here.api.tcp.get("/ui", headers=headers).text


def test_behind_tls_both_cookies_are_kept_to_it(here: Here) -> None:
    here.register(public_url="https://ops.test/tenantry")
    assert here.api.tcp.get("/ui/oidc").headers["set-cookie"].endswith("; Secure")


def test_who_declines_or_may_not_is_told_so_in_the_providers_word(here: Here) -> None:
    here.provider.declines = True
    visitor = here.visitor()
    answer = visitor.log_in()
    assert (answer.status_code, visitor.session) == (403, None)
    assert "(access_denied)" in answer.text
    back = visitor.come_back().replace("access_denied", "%3Cb%3Ecall+0900%3C%2Fb%3E")
    assert "0900" not in visitor.get(back).text


@pytest.mark.parametrize("groups", [None, [], ["other"], ["shop", "ops"], ["admin"], ["deep"]])
def test_who_has_no_rights_is_told_which_claim_gives_none(here: Here, groups: Any) -> None:
    here.provider.person = {"sub": "ann", "groups": groups, "org": "acme"}
    visitor = here.visitor()
    answer = visitor.log_in()
    assert (answer.status_code, visitor.session) == (403, None)
    assert "the token gives" in answer.text


def test_nothing_secret_stands_in_an_address_or_in_the_log(here: Here) -> None:
    seen: list[str] = []

    def note(request: httpx.Request) -> None:
        seen.append(str(request.url))

    visitor = here.visitor()
    visitor.client.event_hooks = {"request": [note]}
    with structlog.testing.capture_logs() as logged:
        visitor.log_in()
        visitor.get("ui")
        visitor.post("ui/logout")
        visitor.get("ui/logged-out")
        here.provider.person = {"sub": "eve", "groups": []}
        here.visitor().log_in()
    assert [one["event"] for one in logged if one["log_level"] == "info"] == ["identity.logged_in"]
    told = " ".join([*seen, *map(str, logged)])
    assert CLIENT_SECRET not in told
    assert "eyJ" not in told  # as every token begins
    assert "code=" not in " ".join(map(str, logged))


def test_another_node_goes_on_with_a_login_that_this_one_has_begun(here: Here) -> None:
    visitor = here.visitor()
    back = visitor.come_back()
    services = here.api.app.state.services
    before = services.logins
    services.logins = Logins(before.registration, here.api.world.identity, PACE)
    assert visitor.get(back).status_code == 200


def test_where_nobody_logs_in_by_a_provider_there_is_no_such_page() -> None:
    with serving(World(jwt_secret=SECRET)) as api:
        for path in ("oidc", "callback", "oidc-logout", "logged-out"):
            answer = api.tcp.get(f"/ui/{path}")
            assert (answer.status_code, "oidc.client_id is not set" in answer.text) == (404, True)
        assert "/ui/oidc" not in api.tcp.get("/ui").text
