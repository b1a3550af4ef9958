"""The operator's page: who is let in, what is sent with it, and that it is safe to look at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urljoin

import httpx
import pytest
from markupsafe import escape

from tenantry.http.page_turns import AT_ONCE
from tenantry.http.tokens import Scope
from tenantry.page.rendering import clipped, size
from tenantry.page.serving import PAGES
from tests.api.page import TOKENS, Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import SECRET, Served, World, serving
from tests.api.test_database_away import on_nothing
from tests.api.test_nodes import caller
from tests.waiting import DEADLINE

FORM = "application/x-www-form-urlencoded"
EVIL = """<script>alert(1)</script>"><b onclick='x'>&amp;{{7*7}}"""


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme", name=EVIL)
        for number in range(120):
            served.world.create(f"t-{number:03}", name="x" * 200, workers=1 + number % 9)
        yield served


@pytest.fixture
def admin(api: Served) -> Browser:
    return Browser(api, token())


def test_what_is_asked_for_without_a_token_is_a_token(api: Served) -> None:
    for given in (None, "x.y.z", "", "a b", f"{token()}; tenantry_session={token()}x"):
        answer = Browser(api, given).get("/ui")
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
        assert "t-001" not in answer.text


def test_a_session_is_a_cookie_that_no_script_and_no_other_page_gets(api: Served) -> None:
    own = token(scope=Scope.READ)
    answer = Browser(api).send("/ui/login", token=f" Bearer {own}\n", to="ui/tenants/acme")
    assert (answer.status_code, answer.headers["location"]) == (303, "../ui/tenants/acme")
    cookie = answer.headers["set-cookie"]
    assert cookie == f"tenantry_session={own}; HttpOnly; SameSite=Strict"
    # Without a path of its own it is for the directory of the form: not for the API.
    assert urljoin("/prefix/ui/login", ".") == "/prefix/ui/"
    assert Browser(api, own).get("/ui").status_code == 200


def test_a_session_that_began_behind_tls_is_kept_to_tls(api: Served) -> None:
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": "https://ops.example"}
    answer = api.tcp.post("/ui/login", data={"token": token()}, headers=headers)
    assert answer.headers["set-cookie"].endswith("; Secure")


def test_a_token_that_is_none_begins_no_session(api: Served) -> None:
    expired = TOKENS.issue(subject="a", now=datetime(2020, 1, 1, tzinfo=UTC), ttl=timedelta(1))
    for given, status in (
        ("", 422), ("x y", 422), ("x\r\nSet-Cookie: a=b", 422), ("x" * 5000, 422),
        ("x.y.z", 401), (expired, 401),
    ):  # fmt: skip
        answer = Browser(api).send("/ui/login", token=given)
        assert (answer.status_code, answer.headers.get("set-cookie")) == (status, None)


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "ui/../..", "", "ui\n/x"])
def test_who_logs_in_is_led_nowhere_else(api: Served, to: str) -> None:
    answer = Browser(api).send("/ui/login", token=token(), to=to)
    assert answer.headers["location"] == "../ui"


def test_logging_out_has_the_browser_forget_the_token(api: Served, admin: Browser) -> None:
    answer = admin.send("/ui/logout")
    assert answer.headers["location"] == "../ui/login"
    assert answer.headers["set-cookie"].startswith("tenantry_session=; ")
    assert "Max-Age=0" in answer.headers["set-cookie"]


FOREIGN: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "null"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://["},
    {"Origin": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_no_form_of_another_page_does_anything(api: Served, foreign: dict[str, str]) -> None:
    before = len(api.world.control.metadata)
    for method, path in PAGES:
        if method == "POST":
            url = path.replace("{tenant_id}", "acme").replace("{node}", "one")
            headers = {"Cookie": f"tenantry_session={token()}", **foreign}
            data = {"token": token(), "confirmed": "yes", "workers": "5"}
            answer = api.tcp.post(url, data=data, headers=headers)
            assert (url, answer.status_code) == (url, 403)
            assert "set-cookie" not in answer.headers
    assert len(api.world.control.metadata) == before


def test_who_has_shown_no_token_sends_little(api: Served) -> None:
    few, many = (Browser(api).send("/ui/login", token="x" * size) for size in (60_000, 70_000))
    assert (few.status_code, many.status_code) == (422, 413)


def test_a_form_is_taken_by_the_name_it_was_sent_to_where_no_browser_says_more(api: Served) -> None:
    answer = api.tcp.post("/ui/login", data={"token": token()}, headers={"Origin": api.url})
    assert answer.status_code == 303
    odd = {"Origin": api.url, "Content-Type": "text/plain"}
    assert api.tcp.post("/ui/logout", content="", headers=odd).status_code == 415


def test_every_answer_has_the_strict_policy(api: Served, admin: Browser) -> None:
    answers = [
        admin.get("/ui"), Browser(api).get("/ui"), admin.get("/ui/nothing"), admin.send("/ui"),
        admin.send("/ui/logout"), admin.get("/ui", sort="x"), *_files(api, admin),
    ]  # fmt: skip
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; ")
        for rule in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert rule in policy
        assert "require-trusted-types-for 'script'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        if "html" in answer.headers.get("content-type", ""):
            assert answer.headers["cache-control"] == "no-store"
            refuse_what_a_strict_policy_would_stop(answer.text)


def _files(api: Served, browser: Browser) -> list[httpx.Response]:
    """Get the files that the overview names."""
    elements = Written(browser.get("/ui").text).elements
    names = [given.get("src") or given.get("href") for tag, given in elements if tag != "a"]
    found = [api.tcp.get(urljoin("/ui", name)) for name in names if name]
    assert len(found) >= 2
    return found


def test_files_are_kept_for_good_under_names_that_change_with_them(
    api: Served, admin: Browser
) -> None:
    for file in _files(api, admin):
        assert file.status_code == 200
        assert "immutable" in file.headers["cache-control"]
    for other in ("page.css", "page.0000000000000000.css", "..%2Fviews.py", "page", "a.b.c.d"):
        assert api.tcp.get(f"/ui/static/{other}").status_code == 404


def test_what_tenants_have_chosen_is_shown_as_text(admin: Browser) -> None:
    page = admin.get("/ui", search="acme").text
    assert EVIL in Written(page).text
    assert "<script>alert" not in page
    assert "<b " not in page
    again = admin.get("/ui", search=f'"><script>{EVIL[:40]}').text
    assert "<script>" not in again


def test_tenants_are_searched_sorted_and_paged_in_at_most_80_kb(
    api: Served, admin: Browser
) -> None:
    seen, path = [], "/ui?sort=-id"
    while path:
        answer = admin.get(path)
        assert len(answer.content) < 80_000
        page = Written(answer.text)
        seen += [one for one in page.text.split() if one.startswith("t-") or one == "acme"]
        following = [given["href"] for _, given in page.elements if given.get("rel") == "next"]
        path = urljoin("/ui", following[0] or "") if following else ""
    assert seen == [f"t-{number:03}" for number in reversed(range(120))] + ["acme"]
    api.world.control.pending.update({"t-007": 12_345_678_901, "t-009": 3})
    first = Written(admin.get("/ui", sort="-pending", search="T-00").text).text
    assert first.index("t-007") < first.index("t-009") < first.index("t-000")
    assert "12,345,678,901" in first
    assert "t-011" not in first
    api.world.control.pending.clear()


def test_what_is_made_up_in_an_address_is_told_and_nothing_breaks(admin: Browser) -> None:
    for given in ({"sort": "colour"}, {"cursor": "x"}, {"search": "\0"}, {"search": "x" * 300}):
        assert admin.get("/ui", **given).status_code in {400, 422}


def test_why_a_daemon_is_not_ready_stands_first(api: Served, admin: Browser) -> None:
    control = api.world.control
    control.system = replace(control.system, ready=False, reasons=(f"the broker is away {EVIL}",))
    text = Written(admin.get("/ui").text).text
    control.system = replace(control.system, ready=True, reasons=())
    assert "the broker is away" in text
    assert text.index("Not ready") < text.index("All tenants")


def test_a_slash_too_many_leads_to_the_overview(admin: Browser) -> None:
    answer = admin.get("/ui/")
    assert answer.status_code == 303
    assert answer.url.join(answer.headers["location"]).path == "/ui"


def test_a_tenants_token_is_led_to_its_own_page(api: Served) -> None:
    answer = Browser(api, token("acme")).get("/ui")
    assert (answer.status_code, answer.headers["location"]) == (303, "./ui/tenants/acme")


def test_on_the_control_socket_who_is_named_by_another_node_may_no_more_than_there(
    api: Served,
) -> None:
    named = caller(name="t", scope="tenant", tenant_id="acme", client="acme/")
    assert api.control.get("/ui/tenants/acme", headers=named).status_code == 200
    form = {**named, "Sec-Fetch-Site": "same-origin", "Content-Type": FORM}
    before = len(api.world.control.metadata)
    for method, path in (
        ("GET", "/ui/tenants/t-001"), ("GET", "/ui/nodes"), ("POST", "/ui/tenants/acme/pause"),
        ("POST", "/ui/tenants/t-001/dead-letters/discard"),
    ):  # fmt: skip
        assert api.control.request(method, path, headers=form).status_code == 403, path
    assert len(api.world.control.metadata) == before


def test_a_session_that_is_good_for_nothing_any_more_can_be_begun_anew(api: Served) -> None:
    gone = Browser(api, token("never-was"))
    for path in ("/ui", "/ui/login"):
        answer = gone.get(path)
        assert answer.status_code == 401
        assert "there is no such tenant" in answer.text
        assert 'name="token"' in answer.text


def test_a_session_is_given_few_pages_at_once_and_takes_nothing_from_others(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.page_turns, "_patience", 0.01)
    control, own = api.world.control, token(scope=Scope.OPERATE)
    others = Browser(api, token())
    while control.entered.acquire(blocking=False):
        pass
    control.held = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        noisy = Browser(api, own)
        asked = [pool.submit(noisy.send, "/ui/tenants/acme/pause") for _ in range(AT_ONCE)]
        try:
            for _ in range(AT_ONCE):
                assert control.entered.acquire(timeout=DEADLINE)
            for spelling in (own, f"{own}="):
                refused = Browser(api, spelling).get("/ui")
                assert refused.status_code == 429
                assert "pages at once" in refused.text
            assert others.get("/ui").status_code == 200
            called = api.tcp.get("/tenants", headers={"Authorization": f"Bearer {own}"})
            assert called.status_code == 200
        finally:
            control.held.set()
            control.held = None
            for one in asked:
                one.result(DEADLINE)
    assert noisy.get("/ui").status_code == 200


def test_with_the_database_away_the_overview_says_what_it_does_not_know() -> None:
    with serving(on_nothing()) as served:
        answer = Browser(served).get("/ui")
    assert answer.status_code == 200
    assert answer.text.count("the database can&#39;t be reached now; try again") == 2
    assert "secret" not in answer.text


def test_without_a_secret_who_is_on_this_machine_is_let_in_and_no_foreign_page() -> None:
    with serving(World()) as served:
        browser = Browser(served)
        assert browser.get("/ui").status_code == 200
        assert browser.get("/ui/login").headers["location"] == "../ui"
        assert "Log out" not in browser.get("/ui").text
        rebound = {"Host": "evil.example"}
        assert served.tcp.get("/ui", headers=rebound).status_code == 403


@pytest.mark.parametrize("text", ["a" * 500, "é" * 500, '"' * 500, "<a>'&" * 100, "字💩" * 200, ""])
def test_a_text_that_is_clipped_takes_twice_its_length_on_a_page_at_most(text: str) -> None:
    for most in (1, 40, 300, 1000):
        shown = clipped(text, most)
        written = size(shown.partition("…")[0])
        assert written <= 2 * most
        assert written == len(str(escape(shown.partition("…")[0])).encode())
        if "…" in shown:
            assert shown.endswith(f"… ({len(text):,} characters)")
        else:
            assert shown == text
    assert clipped("a" * 300) == "a" * 300
