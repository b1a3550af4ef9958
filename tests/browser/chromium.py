"""Debian's Chromium, driven by Playwright, where this machine has both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests import scratch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TOOLS = "`make browser-tools`"


def missing() -> str | None:
    """Tell what this machine lacks; None where a browser can be started."""
    for module in ("playwright", "axe_playwright_python"):
        if find_spec(module) is None:
            return f"{module} is not there: {TOOLS} fetches it"
    return None if _path() else f"no Chromium is there: {TOOLS} installs Debian's"


def _path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Have a browser without a window, which keeps whatever it writes to itself."""
    from playwright.sync_api import sync_playwright

    # Its socket needs a short path, and in a user's own home it has nothing to look for.
    home = scratch.short("tnt-chromium-")
    own = {"TMPDIR": str(home), "HOME": str(home)}
    own |= {f"XDG_{name}_HOME": str(home) for name in ("CONFIG", "CACHE", "DATA")}
    try:
        with ExitStack() as stack:
            with _environment(own):  # which its processes keep
                playwright = stack.enter_context(sync_playwright())
                browser = _launch(playwright, sandbox=os.geteuid() != 0)
            try:
                yield browser
            finally:
                browser.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _environment(own: Mapping[str, str]) -> Iterator[None]:
    """Have variables of one's own; what others set meanwhile stays."""
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _launch(playwright: Playwright, *, sandbox: bool) -> Browser:
    from playwright.sync_api import Error

    try:
        return playwright.chromium.launch(
            executable_path=_path(),
            chromium_sandbox=sandbox,
            args=["--no-proxy-server", "--disable-gpu", "--in-process-gpu"],
        )
    except Error as error:
        if not sandbox or "sandbox" not in str(error).lower():
            raise
        # A container may let an ordinary user make none.
        return _launch(playwright, sandbox=False)
