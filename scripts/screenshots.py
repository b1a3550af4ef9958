"""`python scripts/screenshots.py`: writes the pictures of the operator's page into docs.

A daemon on services of its own is given tenants, messages and dead letters, and looked at in a
browser (`make browser-tools`). What the pictures are of, and how they look, stands in `SHOTS`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.load import wait_until  # noqa: E402 - it is no package that is installed
from bench.services import alone  # noqa: E402
from bench.subject import Subject  # noqa: E402
from tenantry.metrics.statistics import NONE  # noqa: E402
from tests.browser import chromium  # noqa: E402
from tests.browser.looking import NARROW, WIDE  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SETTINGS = {
    "TENANTRY_NODE_NAME": "ingest-1",
    "TENANTRY_RETRY_ATTEMPTS": "1",
    "TENANTRY_HANDLERS": "orders=tests.acceptance.handlers:while_not_broken",
}
TENANTS = ("acme", "brightside", "corvus", "delphi", "eastgate", "fabrikam", "globex", "hooli")
"""Made-up companies, the first of which is looked at."""

TOPICS = ["events", "logs", {"name": "orders", "partitions": 4, "ordering": "partition"}]
A_DAY = """
    INSERT INTO tenantry.statistics
        (tenant_id, step, slot, at, stored, duplicates, dead_lettered, backlog, latencies)
    SELECT 'acme', 1, past %% 1440, to_timestamp(past * 60), load::bigint, 0, 0,
           greatest(0, load - 2300)::bigint,
           (SELECT array_agg(CASE n WHEN 3 THEN 97 WHEN 5 THEN 3 ELSE 0 END ORDER BY n)
            FROM generate_series(1, %s) AS n)
    FROM (SELECT past, 1600 + 900 * sin(past / 229.0) + 120 * sin(past / 7.0) AS load
          FROM generate_series((extract(epoch FROM now()) / 60)::bigint - 1435,
                               (extract(epoch FROM now()) / 60)::bigint - 1) AS past) AS loads
"""
"""A day that the first of them is made to have had, of which nothing else is there."""

ROUNDS = 8
"""Seconds in which messages are published, so that there is something to be counted a second."""


LONG, FLAT = {**NARROW, "height": 1250}, {**WIDE, "height": 640}


class Shot(NamedTuple):
    """A picture: of which page, how wide, in which colours, after what was done there."""

    path: str
    width: Any
    scheme: Any
    prepare: Callable[[Page], object] = lambda _: None


def main() -> None:
    if (reason := chromium.missing()) is not None:
        sys.exit(f"screenshots: {reason}")
    with tempfile.TemporaryDirectory(prefix="tenantry-shots-") as name:
        home = Path(name)
        home.chmod(0o755)
        with alone("embedded", home) as services:
            with psycopg.connect(services.db) as connection:
                connection.execute("CREATE TABLE broken ()")
            with services.running(SETTINGS) as daemon, chromium.launched() as browser:
                fill(daemon, services.db)
                shoot(browser, daemon)


def fill(daemon: Subject, db: str) -> None:
    """Give every page something to show."""
    for number, tenant in enumerate(TENANTS):
        daemon.create(tenant, name=tenant.title(), topics=TOPICS, workers=3 + number % 3)
    with psycopg.connect(db) as connection:
        connection.execute(A_DAY, [len(NONE)])
    daemon.call("PUT", "/tenants/acme/limits", json={"weight": 3, "rate": 500})
    daemon.call("PUT", "/tenants/acme/config/concurrency", json={"workers": 8})
    daemon.call("POST", "/tenants/hooli/pause")
    publish(daemon, "hooli", 70, 0)
    with psycopg.connect(db, autocommit=True) as connection:
        connection.execute("INSERT INTO broken DEFAULT VALUES")
        publish(daemon, "acme", 12, 9, topic="orders")
        letters = "/tenants/acme/dead-letters"
        wait_until(lambda: len(daemon.call("GET", letters)["data"]) == 12, timeout=60)
        connection.execute("TRUNCATE broken")
    for number in range(ROUNDS):
        for place, tenant in enumerate(TENANTS[:-1]):
            publish(daemon, tenant, 400 // (place + 2), number)
        time.sleep(1)


def publish(daemon: Subject, tenant: str, count: int, round_: int, topic: str = "") -> None:
    messages = [
        {
            "topic": topic or ("events", "logs", "orders")[number % 3],
            "id": f"{tenant}-{1000 * round_ + number}",
            "payload": {"order": 1000 * round_ + number, "state": "shipped", "items": number % 7},
        }
        for number in range(count)
    ]
    daemon.call("POST", f"/tenants/{tenant}/messages", json=messages)


def shoot(browser: Browser, daemon: Subject) -> None:
    """Take the pictures."""
    url = f"http://127.0.0.1:{daemon.call('GET', '/info')['server']['port']}"
    for name, shot in SHOTS.items():
        window = browser.new_context(
            base_url=url, viewport=shot.width, color_scheme=shot.scheme, device_scale_factor=1
        )
        page = window.new_page()
        page.goto(shot.path)
        shot.prepare(page)
        page.screenshot(path=str(ROOT / "docs" / f"ui-{name}.png"))
        window.close()


def _at_the_first_version(page: Page) -> None:
    page.locator("#at").focus()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Show versions").click()


def _two_chosen(page: Page) -> None:
    for box in page.get_by_role("checkbox").all()[1:3]:
        box.check()


SHOTS = {
    "overview": Shot("/ui?sort=-rate", WIDE, "light"),
    "tenant": Shot("/ui/tenants/acme", WIDE, "dark"),
    "dead-letters": Shot("/ui/tenants/acme/dead-letters", FLAT, "light", _two_chosen),
    "journal": Shot("/ui/tenants/acme/journal", LONG, "dark", _at_the_first_version),
    "messages": Shot("/ui/tenants/acme/messages", NARROW, "light"),
}


if __name__ == "__main__":
    main()
