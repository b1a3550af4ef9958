"""The page's script: figures that stay fresh, messages that are followed, sliders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.page import token
from tests.api.serving import SECRET, Served, World, serving
from tests.browser.looking import Looking, click
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

ACME = "/ui/tenants/acme"
EVIL = "<img src=x onerror=alert(1)><script>alert(1)</script>'\"&"
LONGEST_PAUSE = 75_000
"""Milliseconds between two attempts at most, jitter included."""


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme", topics=("logs",))
        yield served


@pytest.fixture(scope="module")
def url(api: Served) -> str:
    return api.url


@pytest.fixture
def page(looking: Looking) -> Page:
    """A page whose time can be stopped, and goes on."""
    page = looking.look(token())
    page.clock.install()
    page.clock.resume()
    return page


def still(page: Page, path: str) -> None:
    """Open a page, and stop its time."""
    page.goto(path)
    page.clock.pause_at(page.evaluate("Date.now() / 1000") + 1)


def go_on(page: Page, until: Callable[[], object]) -> None:
    """Have a page's time go on until something is so."""

    def look() -> object:
        page.clock.run_for(LONGEST_PAUSE)
        return until()

    eventually(look)


def refusing(page: Page, pattern: str, status: int) -> list[str]:
    """Have what a page asks for refused; gives what was asked for."""
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=status, body="")

    page.route(re.compile(pattern), refuse)
    return asked


def store(api: Served, **fields: Any) -> None:
    api.world.messages.add("acme", **fields)
    api.world.control.stored["acme"] = api.world.control.stored.get("acme", 0) + 1


def hide(page: Page, *, hidden: bool) -> None:
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_figures_are_fresh_while_the_page_is_in_sight(api: Served, page: Page) -> None:
    still(page, ACME)
    waiting = page.locator("[data-figure=pending]")
    api.world.control.pending["acme"] = 9_007_199_254_740_993
    go_on(page, lambda: waiting.inner_text() == "9,007,199,254,740,993")
    hide(page, hidden=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(10 * LONGEST_PAUSE)
    assert asked == []
    hide(page, hidden=False)
    api.world.control.pending.clear()
    go_on(page, lambda: waiting.inner_text() == "—")


def test_figures_that_are_not_fresh_are_said_to_be_and_asked_for_less_and_less(
    looking: Looking, page: Page
) -> None:
    from playwright.sync_api import expect

    still(page, "/ui")
    stale = page.locator("[data-stale]")
    expect(stale).to_be_hidden()
    asked = refusing(page, "/figures$", 503)
    go_on(page, lambda: len(asked) >= 5)
    expect(stale).to_be_visible()
    # By now it waits for a minute, a quarter more or less.
    before = len(asked)
    page.clock.run_for(44_000)
    assert len(asked) == before
    page.unroute_all()
    go_on(page, stale.is_hidden)
    looking.complaints.taken()


def test_messages_are_followed_as_text_until_nobody_wants_to(api: Served, page: Page) -> None:
    from playwright.sync_api import expect

    page.goto(f"{ACME}/messages")
    expect(page.locator("[data-none]")).to_be_visible()
    page.get_by_role("button", name="Follow").click()
    expect(page.get_by_text("Following.")).to_be_visible()
    store(api, id=EVIL, payload='{"n": 12345678901234567890123}', topic="logs")
    row = page.locator("tbody tr").first
    expect(row).to_contain_text('{"n": 12345678901234567890123}')
    assert row.get_by_role("link").inner_text() == EVIL
    assert page.locator("[data-none], tbody img, tbody script").count() == 0
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Stop").click()
    assert page.get_by_role("button", name="Follow").get_attribute("aria-pressed") == "false"
    click(page, row.get_by_role("link"))
    expect(page.locator("main")).to_contain_text("12345678901234567890123")


def events(*rows: dict[str, str], cursor: str = "c-1", left_out: int = 0) -> str:
    return f"id: {cursor}\ndata: {json.dumps({'rows': rows, 'left_out': left_out})}\n\n"


def row(number: int) -> dict[str, str]:
    texts = dict.fromkeys(("topic", "time", "text"), "x")
    return {"position": f"{number}", "id": f"m-{number}", "link": f"message?id=m-{number}", **texts}


def test_a_table_that_is_followed_has_an_end_and_a_stream_is_taken_up_where_it_was_left(
    page: Page,
) -> None:
    from playwright.sync_api import expect

    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        body = (
            events(*map(row, range(250)), cursor="a b&", left_out=1234) if asked[:-1] == [] else ""
        )
        route.fulfill(content_type="text/event-stream", body=f": still here\n\n{body}")

    page.route(re.compile("/ui/tail"), answer)
    still(page, f"{ACME}/messages")
    page.get_by_role("button", name="Follow").click()
    expect(page.locator("[data-passed]")).to_have_text("1,234 were too many to be shown.")
    rows = page.locator("tbody tr")
    assert rows.count() == 200
    assert rows.first.locator("th").inner_text() == "m-249"
    go_on(page, lambda: asked[1:])
    assert "cursor" not in asked[0]
    assert asked[1].endswith("&cursor=a%20b%26")


def test_a_stream_that_nobody_may_follow_any_more_says_so_and_ends(
    looking: Looking, page: Page
) -> None:
    from playwright.sync_api import expect

    ended, gone = "The session has ended", "There is no such tenant any more."
    for status, said in {401: ended, 403: ended, 404: gone}.items():
        asked = refusing(page, "/ui/tail", status)
        still(page, f"{ACME}/messages")
        page.get_by_role("button", name="Follow").click()
        expect(page.locator("[data-tail] [role=status]")).to_contain_text(said)
        assert page.get_by_role("button", name="Follow").get_attribute("aria-pressed") == "false"
        page.clock.run_for(10 * LONGEST_PAUSE)
        assert len(asked) == 1
        page.unroute_all()


def test_a_stream_that_breaks_is_begun_anew_and_one_in_a_hidden_page_is_let_go(
    api: Served, looking: Looking, page: Page
) -> None:
    from playwright.sync_api import expect

    refusing(page, "/ui/tail", 503)
    still(page, f"{ACME}/messages")
    said = page.locator("[data-tail] [role=status]")
    page.get_by_role("button", name="Follow").click()
    expect(said).to_have_text("The server does not answer; trying again.")
    page.unroute_all()
    go_on(page, lambda: said.inner_text() == "Following.")
    with page.expect_event("requestfailed"):
        hide(page, hidden=True)
    store(api, id="while nobody looks")
    with page.expect_response(re.compile("/ui/tail")) as begun:
        hide(page, hidden=False)
    assert "cursor" not in begun.value.url
    looking.complaints.taken()


def test_a_cursor_that_is_good_for_nothing_is_given_up(looking: Looking, page: Page) -> None:
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        match len(asked):
            case 1:
                route.fulfill(content_type="text/event-stream", body=events(cursor="old"))
            case 2:
                route.fulfill(status=400, body="")
            case _:
                route.fulfill(content_type="text/event-stream", body="")

    page.route(re.compile("/ui/tail"), answer)
    still(page, f"{ACME}/messages")
    page.get_by_role("button", name="Follow").click()
    go_on(page, lambda: asked[2:])
    assert ["cursor=old" in one for one in asked[:3]] == [False, True, False]
    looking.complaints.taken()


def test_sliders_and_fields_for_a_time_follow_one_another(api: Served, page: Page) -> None:
    page.goto(f"{ACME}/journal")
    field, slider = page.locator("#at-time"), page.locator("[data-sets=at-time]")
    least = int(slider.get_attribute("min") or "")
    slider.focus()
    page.keyboard.press("Home")
    written = field.input_value()
    assert page.evaluate(f"Date.parse('{written}Z')") == least * 1000
    assert slider.get_attribute("aria-valuetext") == f"{written} UTC"
    page.keyboard.press("End")
    assert field.input_value() >= written
    field.fill(written)
    assert slider.input_value() == f"{least}"
    versions = page.locator("#at")
    versions.focus()
    page.keyboard.press("Home")
    assert page.locator("output[for=at]").inner_text() == "1"
