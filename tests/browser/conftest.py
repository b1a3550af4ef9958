"""One browser for all of these tests, windows of its own for each."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser import chromium
from tests.browser.looking import Looking
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser; tests are skipped where there is none."""
    if (reason := chromium.missing()) is not None:
        pytest.skip(reason)
    from playwright.sync_api import expect

    expect.set_options(timeout=DEADLINE * 1000)
    with chromium.launched() as launched:
        yield launched


@pytest.fixture(scope="module")
def windows(browser: Browser, url: str) -> Iterator[Looking]:
    """That browser at a file's `url`."""
    opened = Looking(browser, url)
    yield opened
    opened.close()


@pytest.fixture
def looking(windows: Looking) -> Iterator[Looking]:
    """The same for one test, in which the browser may complain about nothing."""
    yield windows
    complaints = windows.complaints
    windows.rest()
    complaints.check()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if isinstance(report.longrepr, tuple) and chromium.TOOLS in report.longrepr[2]:
        # One line for all of them, not one for each place that a test stands in.
        report.longrepr = (chromium.__file__, None, report.longrepr[2])
    return report
