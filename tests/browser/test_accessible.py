"""That everybody can use the page: axe, the keyboard, small and large, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from starlette.routing import compile_path

from tests.api.page import Browser, token
from tests.api.serving import SECRET, Served, World, serving
from tests.browser.gallery import ACME, OTHERWISE, USUALLY, WAYS, books, furnish, pages
from tests.browser.looking import NARROW, WIDE, Looking, barriers, click, press, tab_to
from tests.depth import THOROUGH, examples

if TYPE_CHECKING:
    from playwright.sync_api import Page

APPEARANCES: list[dict[str, Any]] = [
    {"width": WIDE, "scheme": "light"},
    {"width": NARROW, "scheme": "dark"},
    {"width": WIDE, "scheme": "dark"},
    {"width": NARROW, "scheme": "light"},
]


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    world = World(jwt_secret=SECRET)
    furnish(world)
    world.accounts.books["acme"] = books()
    with serving(world) as served:
        yield served


@pytest.fixture(scope="module")
def url(api: Served) -> str:
    return api.url


def _appear(page: Page, width: Any, scheme: Any) -> None:
    page.set_viewport_size(width)
    page.emulate_media(color_scheme=scheme)


def test_no_page_keeps_anybody_out_however_it_is_looked_at(api: Served, looking: Looking) -> None:
    """Each way it can be in a thorough run; in a usual one some pages, in one of them by turns."""
    turns, found, seen = cycle(APPEARANCES), [], set[str]()
    for name, way in examples({one: WAYS[one] for one in USUALLY}, WAYS | OTHERWISE).items():
        page = looking.look(None if name == "login" else token())
        way(page)
        seen |= {one for one in pages() if _is(one, page.url)}
        looking.complaints.check()
        for appearance in examples([next(turns)], APPEARANCES):
            _appear(page, **appearance)
            found += [f"{name}, {appearance}: {one}" for one in barriers(page)]
            # Nobody has to move a page from side to side: what is wide moves in its own place.
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            if widths[0] > widths[1]:
                found.append(f"{name}, {appearance}: {widths[0]} pixels wide")
        looking.complaints.taken()  # of what axe itself does
    assert not found, "\n".join(found)
    if not THOROUGH:
        return
    # What is not among the ways is no page, but leads on, or is not there as things are.
    unseen = [one.removeprefix("GET ").replace("{tenant_id}", "acme") for one in pages() - seen]
    assert [one for one in unseen if Browser(api, token()).get(one).status_code == 200] == []


def _is(page: str, url: str) -> bool:
    path = re.sub(r"^https?://[^/]*|\?.*$", "", url)
    return compile_path(page.removeprefix("GET "))[0].fullmatch(path) is not None


def test_the_keyboard_alone_logs_in_and_acts(api: Served, looking: Looking) -> None:
    from playwright.sync_api import expect

    page = looking.look()
    page.goto(ACME)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.insert_text(token())
    press(page, page.get_by_role("button", name="Log in"))
    page.wait_for_url(f"**{ACME}")
    press(page, page.get_by_role("button", name="Pause"))
    _says(page, "The tenant is paused")
    press(page, page.get_by_role("button", name="Resume"), "Space")
    _says(page, "The tenant consumes again.")
    tab_to(page, page.get_by_label("Workers"))
    page.keyboard.press("ArrowUp")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    _says(page, "The number of workers is in force.")
    assert api.control.get("/tenants/acme").json()["workers"] == 4

    press(page, page.get_by_role("link", name="Dead letters"))
    tab_to(page, page.get_by_role("checkbox").first)
    page.keyboard.press("Space")
    press(page, page.get_by_role("button", name="Replay…"))
    press(page, page.get_by_role("button", name="Replay", exact=True))
    _says(page, "1 published again.")

    page.goto(f"{ACME}/journal")
    tab_to(page, page.get_by_label("At version"))
    page.keyboard.press("Home")
    press(page, page.get_by_role("button", name="Show versions"))
    # The first version was named like that, and had three workers.
    differing = page.locator("tr.differs", has_text="workers")
    assert differing.first.locator("td").all_inner_texts()[:2] == ["3", "4"]


def _says(page: Page, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".done")).to_contain_text(text)


def test_who_comes_by_keyboard_leaves_out_what_every_page_begins_with(
    api: Served, looking: Looking
) -> None:
    page = looking.look(token())
    page.goto(ACME)
    tab_to(page, page.get_by_role("link", name="To the content"))
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_a_state_is_told_by_a_word_and_a_mark_and_not_by_its_colour_alone(
    api: Served, looking: Looking
) -> None:
    page = looking.look(token())
    page.goto("/ui/nodes")
    states = page.locator("tbody .state").all_inner_texts()
    assert len(set(states)) == 3
    assert {one.split()[-1] for one in states} == {"active", "draining", "lost"}


def test_a_page_is_whole_without_scripts(api: Served, looking: Looking) -> None:
    page = looking.look(token(), java_script_enabled=False)
    page.goto(f"{ACME}/messages")
    assert not page.get_by_role("button", name="Follow").is_visible()
    page.goto(f"{ACME}/journal")
    assert page.locator("input[type=range]:visible").count() == 2
    page.locator("#at").fill("1")
    click(page, page.get_by_role("button", name="Show versions"))
    assert page.locator("tr.differs").count() > 0
    page.goto(ACME)
    click(page, page.get_by_role("button", name="Pause"))
    _says(page, "The tenant is paused")
    click(page, page.get_by_role("button", name="Resume"))
