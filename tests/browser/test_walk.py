"""A walk over the page of a running daemon, from a new tenant on; as each who may look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tenantry.http.tokens import Scope
from tests.acceptance.program import Program
from tests.api.page import token
from tests.api.serving import SECRET
from tests.browser.looking import Looking, click
from tests.depth import examples
from tests.services_postgres import admin_url, database
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MARK = "nobody-may-read-this"
"""What is in all messages."""


class Walk:
    """A daemon on its embedded broker, another node beside it, and a tenant that is made once."""

    def __init__(self, daemon: Program, other: Program) -> None:
        self.daemon = daemon
        self.other = other
        self.url = f"http://127.0.0.1:{daemon.get('/info')['server']['port']}"
        self.tenant_id = daemon.name("acme")

    @property
    def path(self) -> str:
        return f"/ui/tenants/{self.tenant_id}"

    def shown(self) -> Any:
        return self.daemon.get(f"/tenants/{self.tenant_id}")

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.daemon.database_url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def publish(self, *ids: str, topic: str) -> None:
        body = [{"payload": f"{MARK} {one}", "id": one, "topic": topic} for one in ids]
        sent = self.daemon.call("POST", f"/tenants/{self.tenant_id}/messages", body)
        assert sent.status_code == 202, sent.text

    def wait_for_letters(self, count: int) -> None:
        path = f"/tenants/{self.tenant_id}/dead-letters"
        eventually(lambda: len(self.daemon.get(path)["data"]) == count, what="dead letters")


@pytest.fixture(scope="module")
def started(browser: Browser) -> Iterator[Walk]:
    with ExitStack() as stack:
        url = stack.enter_context(database(admin_url()))
        nodes = [stack.enter_context(Program(None, url)) for _ in range(2)]
        for name, node in zip(("one", "two"), nodes, strict=True):
            node.settings |= {
                "TENANTRY_NODE_NAME": name,
                "TENANTRY_JWT_SECRET": SECRET,
                "TENANTRY_HANDLERS": "events=tests.acceptance.handlers:while_not_broken",
                "TENANTRY_RETRY_ATTEMPTS": "1",
            }
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE broken ()")
        walk = Walk(nodes[0].start(), nodes[1])
        yield walk
        for node in nodes:
            node.check_no_traceback()
            assert not node.running or node.stop() == 0


@pytest.fixture(scope="module")
def url(started: Walk) -> str:
    return started.url


@pytest.fixture
def walk(started: Walk) -> Walk:
    """The walk's daemon, with its tenant, made through the API where no test before has made it."""
    if started.daemon.status_of(f"/tenants/{started.tenant_id}") == 404:
        started.daemon.create("acme", topics=["events"])
    return started


def says(page: Page, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(".done")).to_contain_text(text)


def press(page: Page, name: str) -> None:
    click(page, page.get_by_role("button", name=name, exact=True))


def follow(page: Page, name: str) -> None:
    click(page, page.get_by_role("link", name=name, exact=True))


def test_an_administrator_makes_a_tenant_and_watches_its_first_message_arrive(
    started: Walk, looking: Looking
) -> None:
    from playwright.sync_api import expect

    page = looking.look()
    page.goto("/ui")
    page.locator("#token").fill(token())
    click(page, page.locator("form:has(#token) button"))
    follow(page, "New tenant…")
    page.get_by_label("Name").fill("Acme & Söhne")
    page.get_by_label("Id", exact=True).fill(started.tenant_id)
    page.get_by_label("Topics").fill("events logs:2")
    press(page, "Create")
    expect(page.get_by_role("heading", level=1)).to_contain_text("The tenant is created")
    password = page.locator("dt:text-is('password') + dd").inner_text()
    assert len(password) > 20
    follow(page, "To the tenant")
    assert password not in page.url + page.content()

    follow(page, "Messages")
    page.get_by_role("button", name="Follow").click()
    expect(page.get_by_text("Following.")).to_be_visible()
    publisher = page.context.new_page()
    publisher.goto(f"{started.path}/publish")
    publisher.get_by_label("Topic").select_option("logs")
    publisher.get_by_label("Payload").fill(f'{{"{MARK}": 12345678901234567890123}}')
    publisher.get_by_label("Id", exact=True).fill("first")
    press(publisher, "Publish")
    says(publisher, "first")
    arrived = page.locator("tbody tr", has_text="first")
    expect(arrived).to_contain_text(f'{{"{MARK}": 12345678901234567890123}}')
    click(page, arrived.get_by_role("link"))
    expect(page.locator("main")).to_contain_text("logs / ")


def test_an_administrator_gives_a_tenant_topics_and_credentials_and_takes_them_back(
    walk: Walk, looking: Looking
) -> None:
    page = looking.look(token())
    page.goto(walk.path)
    follow(page, "Topics")
    page.get_by_label("More topics").fill("orders:2:ordered")
    press(page, "Add")
    says(page, "The topics are there.")
    assert {"name": "orders", "partitions": 2, "ordering": "partition"} in walk.shown()[
        "topic_settings"
    ]
    follow(page, "Credentials")
    press(page, "Give SQL access…")
    press(page, "Give SQL access")
    url = page.locator("dt:text-is('url') + dd").inner_text()
    with psycopg.connect(url) as connection:
        connection.execute("SELECT count(*) FROM messages").fetchone()
    page.goto(f"{walk.path}/credentials")
    press(page, "Revoke SQL access…")
    press(page, "Revoke the SQL access")
    says(page, "The tenant has no SQL access.")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    press(page, "Give consumer access…")
    press(page, "Give consumer access")
    assert "_consumer" in page.locator("dt:text-is('username') + dd").inner_text()
    page.goto(f"{walk.path}/credentials")
    press(page, "Revoke consumer access…")
    press(page, "Revoke the consumer access")
    says(page, "The tenant has no consumer access.")
    assert not walk.shown()["consumer_access"]
    told = [
        (one["type"], one["actor"])
        for one in walk.daemon.get(f"/tenants/{walk.tenant_id}/events?limit=100")["data"]
        if "Access" in one["type"]
    ]
    assert told == [
        ("SqlAccessGranted", "ann"), ("SqlAccessRevoked", "ann"),
        ("ConsumerAccessGranted", "ann"), ("ConsumerAccessRevoked", "ann"),
    ]  # fmt: skip


def test_an_operator_resizes_pauses_and_replays_what_a_broken_handler_left(
    walk: Walk, looking: Looking
) -> None:
    from playwright.sync_api import expect

    page = looking.look(token(scope=Scope.OPERATE))
    page.goto(walk.path)
    page.get_by_label("Workers").fill("5")
    press(page, "Resize")
    says(page, "The number of workers is in force.")
    expect(page.locator("[data-figure=workers]")).to_contain_text("of 5")
    press(page, "Pause")
    says(page, "The tenant is paused")
    expect(page.locator(".state")).to_contain_text("paused")
    press(page, "Resume")

    walk.execute("INSERT INTO broken DEFAULT VALUES")
    walk.publish("a", "b", "c", topic="events")
    walk.wait_for_letters(3)
    follow(page, "Dead letters")
    assert page.locator("tbody tr", has_text="events can't be handled").count() == 3
    follow(page, "a")
    # Who may not see payloads sees what became of it, and not what is in it.
    expect(page.locator("main")).to_contain_text("events can't be handled")
    assert MARK not in page.content()
    page.go_back()
    walk.execute("TRUNCATE broken")
    page.get_by_label("Choose b").check()
    press(page, "Replay…")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Replay 1 dead letter?")
    press(page, "Replay")
    says(page, "1 published again.")
    walk.wait_for_letters(2)
    follow(page, "To the dead letters")
    page.get_by_label("Reason").fill("handler_failed")
    press(page, "Show")
    press(page, "Replay…")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Replay 2 dead letters?")
    press(page, "Replay")
    says(page, "2 published again.")
    walk.wait_for_letters(0)
    stored = f"/messages?tenant_id={walk.tenant_id}&topic=events"
    eventually(lambda: {one["id"] for one in walk.daemon.get(stored)["data"]} == {*"abc"})


def test_a_reader_travels_in_time(walk: Walk, looking: Looking) -> None:
    wanted = walk.shown()["workers"] + 1
    resized = walk.daemon.call(
        "PUT", f"/tenants/{walk.tenant_id}/config/concurrency", {"workers": wanted}
    )
    assert resized.status_code == 200
    page = looking.look(token(scope=Scope.READ))
    page.goto(f"{walk.path}/journal")
    assert page.locator("tr.differs").count() == 0
    slider = page.get_by_label("At version")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    press(page, "Show versions")
    row = page.locator("tr.differs", has=page.get_by_role("rowheader", name="workers", exact=True))
    assert row.locator("td").all_inner_texts() == [f"{wanted - 1}", f"{wanted}", "differs"]
    times = page.locator("[data-sets=at-time]")
    times.focus()
    page.keyboard.press("Home")
    press(page, "Show times")
    assert "at=20" in page.url


def test_a_node_is_drained_and_undrained(walk: Walk, looking: Looking) -> None:
    from playwright.sync_api import expect

    if not walk.other.running:
        walk.other.start()
    both = [("one", "active"), ("two", "active")]
    eventually(lambda: states(walk) == both, what="two nodes")
    page = looking.look(token())
    page.goto("/ui/nodes")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="one"))
    click(page, row.get_by_role("button", name="Drain…"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Drain the node? one")
    press(page, "Drain the node")
    says(page, "The node is being emptied")
    eventually(lambda: walk.shown()["node"] == "two", what="a tenant on its new node")
    page.goto(walk.path)
    expect(page.locator("[data-figure=node]")).to_have_text("two")
    page.goto("/ui/nodes")
    click(page, row.get_by_role("button", name="Undrain"))
    says(page, "gets its share")
    eventually(lambda: states(walk) == both, what="two nodes")


def states(walk: Walk) -> list[tuple[str, str]]:
    return [(one["name"], one["state"]) for one in walk.daemon.get("/nodes")["data"]]


ROLES: dict[str, tuple[Scope, set[str], set[str]]] = {
    "reader": (Scope.READ, {"Tenant", "Dead letters", "Journal", "Checks"}, {"Audit"}),
    "operator": (
        Scope.OPERATE,
        {"Tenant", "Dead letters", "Journal", "Limits", "Checks"},
        {"Audit", "Pause", "Resize", "Change"},
    ),
    "administrator": (
        Scope.ADMIN,
        {"Tenant", "Messages", "Publish", "Dead letters", "Journal", "Topics", "Limits",
         "Credentials", "Checks"},
        {"Audit", "Pause", "Resize", "Change", "Move", "Delete…", "Publish", "Add",
         "Rotate credentials…", "Give consumer access…", "Give SQL access…",
         "Revoke SQL access…", "Prove the isolation"},
    ),
    "tenant": (
        Scope.TENANT,
        {"Tenant", "Messages", "Publish", "Dead letters", "Journal"},
        {"Publish"},
    ),
}  # fmt: skip
"""Who looks: their scope, the pages of a tenant that they are shown, and what they can press."""


@pytest.mark.parametrize("who", examples(("reader", "tenant"), tuple(ROLES)))
def test_each_sees_of_a_tenant_what_they_may_and_no_more(
    walk: Walk, looking: Looking, who: str
) -> None:
    scope, tabs, buttons = ROLES[who]
    walk.publish(f"for {who}", topic="default")
    stored = f"/messages?tenant_id={walk.tenant_id}"
    eventually(
        lambda: f"for {who}" in {one["id"] for one in walk.daemon.get(stored)["data"]}, what="a row"
    )
    own = walk.tenant_id if scope is Scope.TENANT else None
    page = looking.look(token(own, scope))
    page.goto("/ui")
    if scope is Scope.TENANT:
        page.wait_for_url(f"**{walk.path}")
        assert page.locator("header nav a").all_inner_texts() == [walk.tenant_id]
    else:
        offered = page.get_by_role("link", name="New tenant…").count() == 1
        assert offered == (scope is Scope.ADMIN)
        click(page, page.locator("tbody").get_by_role("link", name=walk.tenant_id))
    seen, found = {page.locator("nav.tabs a").first.inner_text()}, set()
    links = page.locator("nav.tabs a").all_inner_texts()
    assert set(links) == tabs
    for name in links:
        click(page, page.locator("nav.tabs").get_by_role("link", name=name, exact=True))
        seen.add(name)
        found |= set(page.locator("main form[method=post] button").all_inner_texts())
        reads = scope in {Scope.ADMIN, Scope.TENANT}
        assert (MARK in page.content()) == (reads and name == "Messages"), name
    assert (seen, found) == (tabs, buttons)
    # What is not offered is refused where somebody knows its address.
    others = {"messages", "publish", "topics", "limits", "credentials"}
    refused = {one for one in others if _status(page, f"{walk.url}{walk.path}/{one}") == 403}
    assert refused == {one for one in others if one.capitalize() not in tabs}
    for path in ("/ui", "/ui/nodes", "/ui/actors", "/ui/new-tenant"):
        expected = scope is Scope.ADMIN or (scope is not Scope.TENANT and path != "/ui/new-tenant")
        answer = page.request.get(f"{walk.url}{path}", max_redirects=0)
        assert (answer.status == 200) == expected, path


def _status(page: Page, url: str) -> int:
    return int(page.request.get(url).status)


def test_a_tenant_is_shown_nothing_of_its_neighbour(walk: Walk, looking: Looking) -> None:
    other = walk.daemon.create("neighbour")
    page = looking.look(token(walk.tenant_id, Scope.TENANT))
    page.goto(f"/ui/tenants/{other.id}")
    assert re.search("forbidden|403|not", page.locator("h1").inner_text(), re.IGNORECASE)
    assert "neighbour" not in page.locator("main").inner_text()
    page.goto("/ui")
    page.wait_for_url(f"**{walk.path}")
