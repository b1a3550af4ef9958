"""What a page may not do, whatever gets into it: the browser holds it to its policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.page import token
from tests.api.serving import SECRET, Served, World, serving
from tests.browser.looking import Looking

FORBIDDEN = {
    "HTML out of a string": "document.body.innerHTML = '<b>x</b>'",
    "a script out of a string": "document.createElement('script').text = 'x'",
    "a script's address out of a string": "document.createElement('script').src = '/x.js'",
    "a policy of its own": "trustedTypes.createPolicy('own', {})",
}
"""What Trusted Types refuse by raising an error."""

ELSEWHERE = "https://elsewhere.example"
BLOCKED = {
    "img-src": f"document.body.append(Object.assign(new Image(), {{src: '{ELSEWHERE}/x.png'}}))",
    "connect-src": f"fetch('{ELSEWHERE}').catch(() => 0)",
    "style-src-elem": "document.head.append(Object.assign("
    "document.createElement('style'), {textContent: 'p {}'}))",
    "frame-src": "document.body.append(Object.assign("
    f"document.createElement('iframe'), {{src: '{ELSEWHERE}'}}))",
    "form-action": "(() => {const form = document.createElement('form');"
    f"form.action = '{ELSEWHERE}'; document.body.append(form); form.submit()}})()",
}
"""What the policy blocks, by its directive."""


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        yield served


@pytest.fixture(scope="module")
def url(api: Served) -> str:
    return api.url


def test_a_script_makes_no_text_into_more_than_text(looking: Looking) -> None:
    page = looking.look(token())
    page.goto("/ui")
    for what, code in FORBIDDEN.items():
        refused = page.evaluate(
            f"() => {{ try {{ {code} }} catch (error) {{ return error.name; }} }}"
        )
        assert (what, refused) == (what, "TypeError")
        assert "trusted-types" in looking.wait_for_violation()


def test_what_is_not_allowed_is_blocked_and_heard_of_here(looking: Looking) -> None:
    page = looking.look(token())
    page.goto("/ui")
    looking.complaints.check()
    for directive, code in BLOCKED.items():
        page.evaluate(f"() => {{ {code} }}")
        blocked = looking.wait_for_violation()
        assert blocked.startswith(directive), blocked


def test_the_session_is_out_of_a_scripts_reach(api: Served, looking: Looking) -> None:
    page = looking.look()
    page.goto("/ui")
    page.get_by_label("Token").fill(token())
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/ui")
    assert page.evaluate("document.cookie") == ""
    (cookie,) = page.context.cookies(f"{api.url}/ui")
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/ui")
    assert page.context.cookies(f"{api.url}/tenants") == []
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/ui/login")
    assert page.context.cookies(f"{api.url}/ui") == []
    page.go_back()
    assert page.get_by_label("Token").is_visible()
