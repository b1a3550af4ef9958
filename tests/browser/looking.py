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
    """A browser at a daemon's page. `complaints` are those of all that look."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints = Complaints()

    def look(self, url: str, session: str | None = None, **options: Any) -> Page:
        """Give a page, in a window of its own, of who has a session, if any; paths are of `url`."""
        context = self._browser.new_context(base_url=url, **{"viewport": WIDE, **options})
        self._contexts.append(context)
        context.set_default_timeout(DEADLINE * 1000)
        context.expose_function("tellViolation", self._tell)
        context.add_init_script(_TELL_VIOLATIONS)
        context.on("console", self._heard)
        context.on("weberror", lambda error: self.complaints.errors.append(str(error.error)))
        if session is not None:
            given = {"name": COOKIE, "value": session, "domain": urlsplit(url).hostname or ""}
            context.add_cookies(
                [{**given, "path": "/ui", "httpOnly": True, "sameSite": "Strict"}]  # type: ignore[list-item]
            )
        return context.new_page()

    def wait_for_violation(self) -> str:
        """Give the first violation, which is meant to happen, and forget all complaints."""
        page = self._contexts[-1].pages[0]

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
        for context in self._contexts:
            context.close()


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


def tab_to(page: Page, wanted: Locator) -> None:
    """Come to something as somebody does who has a keyboard alone, and see that it is shown."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if wanted.evaluate("(it) => it === document.activeElement"):
            outline = wanted.evaluate("(it) => getComputedStyle(it).outlineStyle")
            assert outline != "none", "nobody sees where the keyboard is"
            return
    raise AssertionError(f"not to be reached by the key Tab: {wanted}")


def press(page: Page, wanted: Locator, key: str = "Enter") -> None:
    """Go to a button or link by keyboard, and press it, which leads to a page."""
    tab_to(page, wanted)
    with page.expect_navigation():
        page.keyboard.press(key)
