"""Dead letters, nodes and actors on the operator's page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from tenantry.control.port import ActorStatus
from tenantry.dead_letters.port import RejectedMessage
from tenantry.http.tokens import Scope
from tenantry.nodes.port import Glance, NodeState
from tests.api.dead_letters import message, reject
from tests.api.page import Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import SECRET, Served, World, serving

EVIL = "<script>alert(1)</script>'\"&"
LETTERS = "/ui/tenants/acme/dead-letters"


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme", topics=("logs",), partitions=2)
        yield served


@pytest.fixture
def admin(api: Served) -> Browser:
    return Browser(api, token())


def _kept(page: str) -> dict[str, str]:
    """Give the fields that a form keeps for its second time."""
    hidden = (given for tag, given in Written(page).elements if given.get("type") == "hidden")
    return {given["name"] or "": given["value"] or "" for given in hidden}


def test_dead_letters_are_listed_by_conditions_page_by_page(api: Served, admin: Browser) -> None:
    reject(api.world, *[message(f"m-{number}", EVIL.encode()) for number in range(60)])
    first = admin.get(LETTERS)
    assert first.text.count('name="id"') == 50
    assert len(first.content) < 80_000
    refuse_what_a_strict_policy_would_stop(first.text)
    (link,) = (
        given["href"] for _, given in Written(first.text).elements if given.get("rel") == "next"
    )
    _, _, query = (link or "").partition("?")
    second = admin.get(LETTERS, **dict(parse_qsl(query)))
    assert second.text.count('name="id"') == 10
    assert "There are none of these" in admin.get(LETTERS, topic="default").text
    old = admin.get(LETTERS, since="2020-01-31T12:00", until="2021-01-31T12:00:30").text
    assert "There are none of these" in old
    assert 'value="2020-01-31T12:00:00"' in old
    for wrong in ({"since": "x"}, {"reason": "x" * 65}, {"cursor": "x"}):
        assert admin.get(LETTERS, **wrong).status_code in {400, 422}


def test_what_is_replayed_is_told_before_and_done_when_it_is_confirmed(
    api: Served, admin: Browser
) -> None:
    reject(api.world, message("m-1"), message("m-2"), message("m-3", topic="default"))
    told = admin.send(f"{LETTERS}/replay", topic="logs")
    assert "Replay 2 dead letters?" in Written(told.text).text
    assert (api.world.publishing.sent, _kept(told.text)) == ([], {"topic": "logs"})
    done = admin.send(f"{LETTERS}/replay", **_kept(told.text), confirmed="yes")
    assert "2 published again." in Written(done.text).text
    assert [one.message_id for one in api.world.publishing.sent] == ["m-1", "m-2"]
    left = [one["id"] for one in api.control.get("/tenants/acme/dead-letters").json()["data"]]
    assert left == ["m-3"]


def test_what_is_chosen_is_discarded_and_nothing_beside_it(api: Served, admin: Browser) -> None:
    first, _ = reject(api.world, message("m-1"), message("m-2"))
    told = admin.send(f"{LETTERS}/discard", topic="logs", id=str(first))
    assert "Discard 1 dead letter?" in Written(told.text).text
    done = admin.send(f"{LETTERS}/discard", **_kept(told.text), confirmed="yes")
    assert "1 thrown away." in Written(done.text).text
    left = [one["id"] for one in api.control.get("/tenants/acme/dead-letters").json()["data"]]
    assert left == ["m-2"]
    actor = api.world.journal.read_all()[-1].metadata.actor
    assert actor == "ann"


def test_what_is_in_a_dead_letter_is_shown_as_text_to_those_who_may_see_payloads(
    api: Served, admin: Browser
) -> None:
    large = 2**63 + 1
    body = EVIL.encode() + b"\xff\x00\xe2\x80\xae" + b"x" * 1_000_000
    (letter,) = reject(api.world, message("m-1", body, headers={"n": large, "<b>": EVIL}))
    path = f"{LETTERS}/{letter}"
    page = admin.get(path)
    assert len(page.content) < 80_000
    assert "<script>" not in page.text
    assert EVIL in Written(page.text).text
    assert str(large) in page.text
    refuse_what_a_strict_policy_would_stop(page.text)
    bare = Browser(api, token(scope=Scope.READ)).get(path).text
    assert "alert(1)" not in Written(bare).text
    assert "formaction" not in bare
    assert admin.get(f"{LETTERS}/nobody").status_code == 404


def test_a_dead_letters_page_is_small_whatever_is_in_it(api: Served, admin: Browser) -> None:
    quotes = '"' * 60_000
    odd = message('"' * 255, quotes.encode(), headers={"a": quotes})
    (letter,) = reject(api.world, odd)
    assert len(admin.get(f"{LETTERS}/{letter}").content) < 80_000


def test_a_list_of_dead_letters_is_small_whatever_is_in_them(api: Served, admin: Browser) -> None:
    quotes = '"' * 255
    odd = [message(f"{quotes[:-3]}{number:03}", b"x") for number in range(60)]
    rejected = [RejectedMessage(one, quotes[:64], quotes * 4, 1) for one in odd]
    api.world.letters.add("acme", rejected)
    page = admin.get(LETTERS, reason=quotes[:64])
    assert page.text.count('name="id"') == 50
    assert len(page.content) < 80_000
    assert "… (255 characters)" in page.text
    assert "… (1,020 characters)" in page.text


def test_a_node_is_drained_when_that_is_confirmed(api: Served, admin: Browser) -> None:
    cluster = api.world.cluster
    cluster.states["two"] = NodeState.ACTIVE
    asked = admin.send("/ui/nodes/two/drain")
    assert (asked.status_code, cluster.states["two"]) == (200, NodeState.ACTIVE)
    done = admin.send("/ui/nodes/two/drain", confirmed="yes")
    led = done.url.join(done.headers["location"])
    assert led.path == "/ui/nodes"
    assert cluster.states["two"] is NodeState.DRAINING
    page = admin.get(led.path, **led.params).text
    assert "is being emptied" in page
    assert "../ui/nodes/two/undrain" in Written(page).actions()
    admin.send("/ui/nodes/two/undrain")
    assert cluster.states["two"] is NodeState.ACTIVE
    reader = Browser(api, token(scope=Scope.READ)).get("/ui/nodes").text
    assert Written(reader).actions() == {"../ui/logout"}


def test_a_tenant_is_moved_from_its_page(api: Served, admin: Browser) -> None:
    api.world.cluster.states["two"] = NodeState.DRAINING
    assert "<option>two</option>" in admin.get("/ui/tenants/acme").text
    refused = admin.send("/ui/tenants/acme/move", node="two")
    assert refused.status_code == 409
    assert "takes no tenants" in Written(refused.text).text
    assert admin.send("/ui/tenants/acme/move", node="").status_code == 303
    assert api.world.cluster.wanted["acme"] is None


def test_the_tree_of_actors_is_shown_page_by_page_and_by_what_is_not_well(
    api: Served, admin: Browser
) -> None:
    control = api.world.control

    def tenant(name: str, state: str) -> ActorStatus:
        worker = ActorStatus(name="worker-1", kind="Worker", state=state, mailbox=7, restarts=3)
        return ActorStatus(
            name=name, kind="Tenant", state="active", mailbox=0, restarts=0, children=(worker,) * 64
        )

    children = tuple(tenant(f"t-{n:05}", "stuck" if n == 77 else "idle") for n in range(100))
    control.system = replace(
        control.system,
        tree=replace(control.system.tree, children=children),
        nodes=(Glance(name="one", state=NodeState.ACTIVE),),
        node="one",
    )
    page = admin.get("/ui/actors")
    assert "and 52 more" in page.text
    assert "restarted 3" in page.text
    assert _pages(admin, "/ui/actors", "t-") == [one.name for one in children]
    unwell = Written(admin.get("/ui/actors", unwell="yes").text).text
    assert "t-00077" in unwell
    assert "t-00001" not in unwell
    for begin in ("-1", "x", "9" * 5000):
        assert admin.get("/ui/actors", begin=begin).status_code == 200


def test_actors_whatever_they_are_called_are_shown_in_small_pages(
    api: Served, admin: Browser
) -> None:
    control = api.world.control

    def named(name: str, *below: ActorStatus) -> ActorStatus:
        return ActorStatus(
            name=name, kind="Tenant", state="active", mailbox=10**9, restarts=10**9, children=below
        )

    workers = [named(EVIL * 10 + '"' * 200) for _ in range(30)]
    children = tuple(named(f"t-{n:03}" + '"' * 200, *workers) for n in range(30))
    control.system = replace(
        control.system, tree=replace(control.system.tree, children=children), node="one"
    )
    seen = _pages(admin, "/ui/actors", "t-")
    assert [one[:5] for one in seen] == [f"t-{n:03}" for n in range(30)]
    assert "and 18 more" in admin.get("/ui/actors").text


def test_of_very_many_nodes_the_pages_stay_small(api: Served, admin: Browser) -> None:
    names = [f"n-{number:03}-{'x' * 55}" for number in range(300)]
    api.world.cluster.states |= dict.fromkeys(names, NodeState.ACTIVE)
    assert _pages(admin, "/ui/nodes", "n-") == names
    overview = admin.get("/ui")
    assert len(overview.content) < 80_000
    assert "and 261 more" in overview.text


def _pages(browser: Browser, path: str, beginning: str) -> list[str]:
    """Give what is listed on pages, one after the other, each of them small."""
    seen: list[str] = []
    while path:
        answer = browser.get(path)
        assert len(answer.content) < 80_000
        page = Written(answer.text)
        seen += [one for one in page.text.split() if one.startswith(beginning)]
        following = [given["href"] for _, given in page.elements if given.get("rel") == "next"]
        path = str(answer.url.join(following[0] or "")) if following else ""
    return seen
