"""Pages as somebody looks at them: as whom, what the browser complains of, what axe finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.waiting import DEADLINE, eventually

if TYPE_CHECKING:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 740}
"""Pixels of a window on a desk, and of a small telephone."""

COOKIE = "tenantry_session"
MOST_TABS = 120

_TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => tellViolation(
  `${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`));
"""


_STOPS_BEFORE = """(it) => {
  const able = "a[href], button, input, select, textarea, summary, [tabindex]";
  const shown = [...document.querySelectorAll(able)].filter((one) => one.checkVisibility());
  return shown.indexOf(it) - shown.indexOf(document.activeElement);
}"""


@dataclass(slots=True)
class Complaints:
    """What browsers complained about: the policy that a page breaks, errors on the console."""

    violations: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def check(self) -> None:
        assert (self.violations, self.errors) == ([], [])

    def taken(self) -> list[str]:
        """Give the violations, which were meant to happen, and forget all complaints."""
        taken = list(self.violations)
        self.violations.clear()
        self.errors.clear()
        return taken


class Looking:
    """A browser at pages of `url`. A window is used again, by whoever looks next.

    To begin one costs more than to look at a page. `complaints` are those of all windows.
    """

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._windows: dict[str, BrowserContext] = {}
        self.complaints = Complaints()

    def look(self, session: str | None = None, **options: Any) -> Page:
        """Give a page of who has a session, if any; whoever looked before looks no more."""
        window = self._windows.get(repr(options)) or self._window(options)
        window.clear_cookies()
        if session is not None:
            given = {"name": COOKIE, "value": session, "domain": urlsplit(self._url).hostname or ""}
            window.add_cookies(
                [{**given, "path": "/ui", "httpOnly": True, "sameSite": "Strict"}]  # type: ignore[list-item]
            )
        return window.pages[0] if window.pages else window.new_page()

    def rest(self) -> None:
        """Look at nothing, and have forgotten what was done to pages."""
        for window in self._windows.values():
            first, *others = window.pages
            for page in others:
                page.close()
            first.unroute_all()
            first.goto("about:blank")

    def _window(self, options: dict[str, Any]) -> BrowserContext:
        window = self._browser.new_context(base_url=self._url, **{"viewport": WIDE, **options})
        window.set_default_timeout(DEADLINE * 1000)
        window.expose_function("tellViolation", self._tell)
        window.add_init_script(_TELL_VIOLATIONS)
        window.on("console", self._heard)
        window.on("weberror", lambda error: self.complaints.errors.append(str(error.error)))
        self._windows[repr(options)] = window
        return window

    def wait_for_violation(self) -> str:
        """Give the first violation, which is meant to happen, and forget all complaints."""
        page = next(iter(self._windows.values())).pages[0]

        def look() -> list[str]:
            page.evaluate("0")  # what the browser has to tell is heard while it is listened to
            return self.complaints.taken()

        return eventually(look, what="a violation of the policy")[0]

    def _tell(self, violation: str) -> None:
        self.complaints.violations.append(violation)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type not in {"error", "warning"}:
            return
        # A page that says why something was refused is an answer as it should be.
        if "the server responded with a status of 4" not in message.text:
            self.complaints.errors.append(f"{message.text} ({message.location})")

    def close(self) -> None:
        for window in self._windows.values():
            window.close()


@cache
def _axe() -> Axe:
    from axe_playwright_python.sync_playwright import Axe

    return Axe()


def barriers(page: Page) -> list[str]:
    """Give what axe finds that keeps somebody from using a page as it is shown now."""
    found = _axe().run(page).response["violations"]
    return [
        f"{page.url}: {one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found
        for node in one["nodes"]
    ]


def click(page: Page, wanted: Locator) -> None:
    """Click on what leads to a page, and wait for that: to read from a page waits for none."""
    with page.expect_navigation():
        wanted.click()


def tab_to(page: Page, wanted: Locator) -> None:
    """Come to something as somebody does who has a keyboard alone, and see that it is shown."""
    # Most of the way is as long as what is written before it; a field for a time has several stops.
    for _ in range(wanted.evaluate(_STOPS_BEFORE)):
        page.keyboard.press("Tab")
    for _ in range(MOST_TABS):
        if wanted.evaluate("(it) => it === document.activeElement"):
            outline = wanted.evaluate("(it) => getComputedStyle(it).outlineStyle")
            assert outline != "none", "nobody sees where the keyboard is"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"not to be reached by the key Tab: {wanted}")


def press(page: Page, wanted: Locator, key: str = "Enter") -> None:
    """Go to a button or link by keyboard, and press it, which leads to a page."""
    tab_to(page, wanted)
    with page.expect_navigation():
        page.keyboard.press(key)
