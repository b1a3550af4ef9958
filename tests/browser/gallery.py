"""Every page there is, with something on it, over ports in memory: by name, and the way there."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

from tenantry.audit.balance import Account
from tenantry.metrics.statistics import NONE, Slot
from tenantry.nodes.port import NodeState
from tenantry.page.serving import PAGES
from tests.api.dead_letters import message, reject
from tests.api.fakes import empty_account
from tests.api.serving import World
from tests.browser.looking import click

if TYPE_CHECKING:
    from playwright.sync_api import Page

Way = Callable[["Page"], object]

ACME = "/ui/tenants/acme"
LONG = "x" * 400


def furnish(world: World) -> None:
    """Put something on every page."""
    world.create("acme", name="Acme & Söhne", topics=("events", "logs"), partitions=4)
    world.create("broken", name="In trouble")
    for number in range(8):
        world.create(f"t-{number:02}", name=f"Tenant {number}")
    world.control.trouble["broken"] = "its queue was deleted behind the daemon's back"
    world.cluster.states["two"] = NodeState.DRAINING
    world.cluster.states["three"] = NodeState.LOST
    now = world.statistics.now.replace(second=0)
    world.statistics.slots["acme", False] = [
        Slot(
            at=now - timedelta(minutes=minute),
            stored=int(60_000 * (1 + math.sin(minute / 99))),
            backlog=minute % 40,
            latencies=(90, 10, *NONE[2:]),
        )
        for minute in range(0, 1440, 60)
    ]
    for number in range(8):
        text = LONG if number == 7 else f"order {number}"
        world.messages.add("acme", payload=f'{{"text": "{text}"}}', topic="events")
    reject(world, *(message(f"m-{number}", LONG.encode()) for number in range(8)))


def open_(path: str) -> Way:
    return lambda page: page.goto(path)


def sent(path: str, button: str, **fields: str) -> Way:
    """Fill in a page's form, and send it by its button."""

    def go(page: Page) -> None:
        page.goto(path)
        for label, text in fields.items():
            page.get_by_label(label, exact=True).first.fill(text)
        click(page, page.get_by_role("button", name=button, exact=True))

    return go


def then(way: Way, button: str) -> Way:
    """Press a button of the page that a way leads to."""

    def go(page: Page) -> None:
        way(page)
        click(page, page.get_by_role("button", name=button, exact=True))

    return go


def _first_letter(page: Page) -> None:
    page.goto(f"{ACME}/dead-letters")
    click(page, page.locator("tbody th a").first)


def _some_letters(page: Page) -> None:
    page.goto(f"{ACME}/dead-letters")
    page.get_by_role("checkbox").first.check()
    click(page, page.get_by_role("button", name="Replay…"))


WAYS: dict[str, Way] = {
    "login": open_("/ui/login"),
    "link": open_("/ui/login?code=x"),
    "overview": open_("/ui?sort=-pending"),
    "nodes": open_("/ui/nodes"),
    "confirm": then(open_("/ui/nodes"), "Drain…"),
    "actors": open_("/ui/actors"),
    "problem": open_("/ui/nothing"),
    "new tenant": open_("/ui/new-tenant"),
    "password": sent("/ui/new-tenant", "Create", Name="Fresh"),
    "tenant": open_(ACME),
    "tenant, in trouble": open_("/ui/tenants/broken"),
    "messages": open_(f"{ACME}/messages"),
    "message": open_(f"{ACME}/message?id=m-8"),
    "publish": open_(f"{ACME}/publish"),
    "dead letters": open_(f"{ACME}/dead-letters"),
    "dead letter": _first_letter,
    "replay?": _some_letters,
    "replayed": then(_some_letters, "Replay"),
    "journal": open_(f"{ACME}/journal?at=1"),
    "topics": open_(f"{ACME}/topics"),
    "limits": open_(f"{ACME}/limits"),
    "credentials": open_(f"{ACME}/credentials"),
    "checks": open_(f"{ACME}/checks"),
    "audit": then(open_(f"{ACME}/checks"), "Audit"),
    "delete?": then(open_(ACME), "Delete…"),
}
"""Each page once."""

USUALLY = ("login", "overview", "tenant, in trouble", "dead letters", "journal")
"""Those on which there is most that can be wrong."""

OTHERWISE: dict[str, Way] = {
    "overview, a search for nothing": open_("/ui?search=nothing"),
    "new tenant, refused": sent("/ui/new-tenant", "Create", Name="A", Topics="a:b:c"),
    "tenant, resized": then(open_(ACME), "Resize"),
    "messages, none": open_("/ui/tenants/broken/messages"),
    "message, none": open_(f"{ACME}/message?id=nothing"),
    "publish, done": sent(f"{ACME}/publish", "Publish", Payload='{"a": 1}'),
    "publish, refused": sent(f"{ACME}/publish", "Publish", Payload="{"),
    "dead letters, none": open_(f"{ACME}/dead-letters?topic=nothing"),
    "discard?": then(open_(f"{ACME}/dead-letters"), "Discard…"),
    "journal, at a time": open_(f"{ACME}/journal?at={quote('2020-01-31T12:00:00Z')}"),
    "topics, refused": sent(f"{ACME}/topics", "Add", **{"More topics": "a:b:c"}),
    "limits, refused": sent(f"{ACME}/limits", "Change", **{"Retention, age": "x"}),
    "rotate?": then(open_(f"{ACME}/credentials"), "Rotate credentials…"),
    "isolation": then(open_(f"{ACME}/checks"), "Prove the isolation"),
}
"""The same pages with something else on them."""

NO_PAGES = {
    "GET /ui/static/{name}", "GET /ui/figures", "GET /ui/tenants/{tenant_id}/figures",
    "GET /ui/tail", "GET /ui/",
}  # fmt: skip
"""What is no page by itself."""


def pages() -> set[str]:
    """Give the pages that are shown by being asked for, as they are in the table of pages."""
    return {f"{method} {path}" for method, path in PAGES if method == "GET"} - NO_PAGES


def books() -> Account:
    """Give books that do not add up."""
    return empty_account("acme", position=10, stored=10, rows=7, newest=10)
