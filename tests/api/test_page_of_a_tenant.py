"""One tenant's pages: how it is, how it was, and what their forms do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tenantry.api.access import TABLE, may
from tenantry.domain import names
from tenantry.domain.events import MessageDeadLettered
from tenantry.http.tokens import Scope
from tenantry.journal.port import Metadata
from tenantry.metrics.statistics import NONE, Slot
from tenantry.page import messages as page_of_messages
from tenantry.page.serving import FORMS
from tenantry.page.tenants import HEIGHT, WIDTH, chart, differences
from tests.api.page import Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import SECRET, Served, World, serving
from tests.api.test_nodes import two_nodes

EVIL = "<script>alert(1)</script>'\"&"
FIELDS = {"confirmed": "yes", "workers": "5", "node": "one"}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        for tenant_id in ("acme", "other"):
            served.world.create(tenant_id, name=EVIL, topics=("logs",))
        yield served


@pytest.fixture
def admin(api: Served) -> Browser:
    return Browser(api, token())


def _forms(tenant_id: str) -> dict[str, str]:
    """Give the call of each form, by the path that it is sent to."""
    return {
        path.replace("{tenant_id}", tenant_id).replace("{node}", "nobody"): call
        for path, call in FORMS.items()
    }


@pytest.mark.parametrize("payloads", [False, True], ids=["without", "with payloads"])
@pytest.mark.parametrize("scope", [Scope.READ, Scope.OPERATE, Scope.ADMIN])
def test_a_form_does_what_its_senders_token_may_by_the_table_and_nothing_else(
    api: Served, scope: Scope, *, payloads: bool
) -> None:
    browser = Browser(api, token(scope=scope, payloads=payloads))
    for path, call in _forms("other").items():
        method, _, template = call.partition(" ")
        admitted = may((method, template), scope, payloads=payloads)
        refused = browser.send(path, **FIELDS).status_code == 403
        assert (path, refused) == (path, not admitted)
        # Whoever may not is not asked whether they are sure, either.
        assert (browser.send(path, workers="5").status_code == 403) == (not admitted)


def test_a_tenants_token_does_to_itself_what_the_table_says_and_to_others_nothing(
    api: Served,
) -> None:
    browser = Browser(api, token("other"))
    for path, call in _forms("other").items():
        method, _, template = call.partition(" ")
        its_own = TABLE[method, template].is_tenants
        assert (browser.send(path, **FIELDS).status_code == 403) == (not its_own)
    for path in (*_forms("acme"), "/ui/tenants/acme", "/ui/tenants/acme/journal"):
        answer = browser.send(path, **FIELDS) if path in _forms("acme") else browser.get(path)
        assert (path, answer.status_code) == (path, 403)
    assert browser.get("/ui/tenants/other").status_code == 200
    assert browser.get("/ui/tenants/other/journal").status_code == 200


def test_a_tenant_is_paused_resumed_and_resized_and_the_journal_names_who_did_it(
    api: Served, admin: Browser
) -> None:
    for act, fields, field, value, told in (
        ("pause", {}, "state", "paused", "The tenant is paused"),
        ("resume", {}, "state", "active", "The tenant consumes again."),
        ("resize", {"workers": "7"}, "workers", 7, "The number of workers is in force."),
    ):
        done = admin.send(f"/ui/tenants/acme/{act}", **fields)
        led = done.url.join(done.headers["location"])
        assert led.path == "/ui/tenants/acme"
        assert api.control.get("/tenants/acme").json()[field] == value
        assert api.world.control.metadata[-1].actor == "ann"
        assert told in Written(admin.get(led.path, **led.params).text).text


@pytest.mark.parametrize("workers", ["0", "65", "x", "", "1e3", "9" * 5000, "٣"])
def test_a_number_of_workers_that_can_not_be_is_told(
    api: Served, admin: Browser, workers: str
) -> None:
    before = api.control.get("/tenants/other").json()["workers"]
    answer = admin.send("/ui/tenants/other/resize", workers=workers)
    assert answer.status_code == 422
    assert "workers: " in Written(answer.text).text
    assert api.control.get("/tenants/other").json()["workers"] == before


def test_a_tenants_day_is_drawn_and_told_in_numbers(api: Served, admin: Browser) -> None:
    now = api.world.statistics.now.replace(second=0)
    latencies = (90, 10, *NONE[2:])
    slot = Slot(at=now - timedelta(minutes=30), stored=9_007_199_254_740_993, latencies=latencies)
    api.world.statistics.slots["acme", False] = [slot]
    page = Written(admin.get("/ui/tenants/acme").text)
    assert "9,007,199,254,740,993" in page.text
    drawn = [given["points"] for tag, given in page.elements if tag == "polyline"]
    assert len(drawn) == 3  # one of them is a dot: latency is known of one step alone


def test_a_pages_figures_are_told_anew_as_they_stand_on_it(api: Served, admin: Browser) -> None:
    api.world.control.pending["acme"] = 9_007_199_254_740_993
    for path, figures in (("/ui", "/ui/figures"), ("/ui/tenants/acme",) * 2):
        page = admin.get(path).text
        told = admin.get(figures if path == "/ui" else f"{figures}/figures").json()
        names = {given.get("data-figure") for _, given in Written(page).elements} - {None}
        assert told.keys() == names
        for name, text in told.items():
            assert f'data-figure="{name}">{text}</dd>' in page
    assert told["pending"] == "9,007,199,254,740,993"
    api.world.control.pending.clear()
    assert Browser(api).get("/ui/figures").status_code == 401
    assert Browser(api, token("other")).get("/ui/tenants/acme/figures").status_code == 403
    assert Browser(api, token("other")).get("/ui/figures").status_code == 403


def test_a_chart_is_in_its_box_and_has_gaps_where_nothing_is_known() -> None:
    drawn = chart("A", "b", [0, 10, None, None, 5.0, None, 1, 10])
    assert drawn.lines == [f"0.0,{HEIGHT}.0 85.7,0.0", f"514.3,108.0 {WIDTH}.0,0.0"]
    assert drawn.dots == ["342.9,60.0 342.9,60.0"]
    assert chart("A", "b", []).lines == []
    assert chart("A", "b", [0, 0]).lines == [f"0.0,{HEIGHT}.0 {WIDTH}.0,{HEIGHT}.0"]


def test_a_tenant_is_shown_as_it_was_and_what_differs_between_two_moments(
    api: Served, admin: Browser
) -> None:
    api.world.create("past", name="Past", workers=2)
    api.control.put("/tenants/past/config/concurrency", json={"workers": 9})
    path = "/ui/tenants/past/journal"
    page = admin.get(path, at="2")
    text = Written(page.text).text
    assert "WorkersResized" in text
    assert 'max="3"' in page.text
    rows = [one for one in page.text.split("<tr") if 'class="differs"' in one]
    workers = next(one for one in rows if ">workers<" in one)
    assert ">2<" in workers
    assert ">9<" in workers
    same = admin.get(path, at="1", against="1").text
    assert 'class="differs"' not in same
    left_and_right = "version 2, on the left; version 3, the present one, on the right."
    assert left_and_right in " ".join(text.split())
    assert admin.get(path, at="x").status_code == 422
    assert admin.get(path, cursor="x").status_code == 400
    refuse_what_a_strict_policy_would_stop(page.text)


def test_a_tenant_is_shown_as_it_was_at_a_time_and_what_differs_between_two(
    api: Served, admin: Browser
) -> None:
    api.world.create("timed", name=EVIL, workers=2)
    path = "/ui/tenants/timed/journal"
    for workers in (4, 9):
        api.control.put(
            "/tenants/timed/config/concurrency", json={"workers": workers}
        ).raise_for_status()
    *_, third, last = api.control.get("/tenants/timed/events").json()["data"]

    def differing(**moments: str) -> dict[str, list[str]]:
        page = admin.get(path, **moments)
        assert page.status_code == 200
        assert len(page.content) < 80_000
        refuse_what_a_strict_policy_would_stop(page.text)
        rows = [one for one in page.text.split("<tr") if 'class="differs"' in one]
        cells = [Written(f"<tr{one}").text.split() for one in rows]
        return {name: values for name, *values in cells}

    between = differing(at=third["recorded_at"], against=last["recorded_at"])
    assert between["workers"] == ["4", "9", "differs"]
    assert differing(at=third["recorded_at"], against="2")["workers"] == ["4", "2", "differs"]
    assert differing(at="2999-01-31T12:00") == {}
    early = admin.get(path, at="2020-01-31T12:00")
    said = " ".join(Written(early.text).text.split())
    assert (
        "2020-01-31 12:00:00 UTC, no such tenant, on the left; version 4, the present one" in said
    )
    assert 'value="2020-01-31T12:00:00"' in early.text
    assert (
        "There was no such tenant then."
        in admin.get(path, at="2020-01-31T12:00", against="2020-01-31T12:00:30").text
    )
    for strange in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        assert admin.get(path, at=strange).status_code in {200, 422}
    for wrong in ("2020-13-31T12:00", EVIL, "2020-01-31 12:00"):
        answer = admin.get(path, at=wrong)
        assert answer.status_code == 422
        assert "<script>" not in answer.text


def test_a_slider_goes_from_a_tenants_creation_till_now_and_needs_a_script(
    api: Served, admin: Browser
) -> None:
    path = "/ui/tenants/other/journal"
    elements = Written(admin.get(path).text).elements
    sliders = [given for _, given in elements if "data-sets" in given]
    ids = {given.get("id"): given for _, given in elements}
    assert [ids[one["data-sets"]]["name"] for one in sliders] == ["at", "against"]
    created = datetime.fromisoformat(api.control.get("/tenants/other").json()["created_at"])
    for one in sliders:
        assert "hidden" in one
        assert one["min"] == f"{int(created.timestamp())}"
        assert int(one["min"]) <= int(one["value"] or 0) == int(one["max"] or 0)


def test_the_journal_is_paged_and_outlives_its_tenant(api: Served, admin: Browser) -> None:
    api.world.create("gone")
    for number in range(60):
        api.control.put(
            "/tenants/gone/config/concurrency", json={"workers": 1 + number % 64}
        ).raise_for_status()
    api.control.delete("/tenants/gone").raise_for_status()
    path, seen = "/ui/tenants/gone/journal", 0
    for _ in range(3):
        page = Written(admin.get(path).text)
        seen += page.text.count("WorkersResized")
        following = [given["href"] for _, given in page.elements if given.get("rel") == "next"]
        if not following:
            break
        path = f"/ui/tenants/gone/{following[0]}"
    assert seen == 60
    assert "Choose a version" in page.text
    assert admin.get("/ui/tenants/gone/journal", at="2").status_code == 200
    assert admin.get("/ui/tenants/gone").status_code == 404


def test_a_journal_says_what_of_it_is_archived(api: Served, admin: Browser) -> None:
    api.world.create("old")
    head = api.world.journal.read_all()[-1].position
    api.world.journal.archive(head, "here:/archive")
    page = admin.get("/ui/tenants/old/journal")
    assert page.status_code == 200
    assert "here:/archive" in Written(page.text).text
    past = admin.get("/ui/tenants/old/journal", at="1")
    assert past.status_code == 410
    assert "here:/archive" in Written(past.text).text


def test_a_journal_is_small_whatever_is_in_it(api: Served, admin: Browser) -> None:
    api.world.create("noisy", name=EVIL * 5)
    quotes = '"' * 1000
    event = MessageDeadLettered(
        tenant_id="noisy", message_id=quotes[:255], topic="logs", partition=63, reason="not_json",
        error=quotes, first_error=quotes, attempts=10**9, size=10**9, ordered=True,
    )  # fmt: skip
    api.world.journal.append(
        names.dead_letter_journal_stream("noisy"), [event] * 60, expected=0,
        metadata=Metadata(actor=quotes[:200]),
    )  # fmt: skip
    page = admin.get("/ui/tenants/noisy/journal", at="1", against="2020-01-01T00:00")
    assert page.text.count("MessageDeadLettered") == 48
    assert len(page.content) < 80_000


@pytest.mark.parametrize("by_socket", [True, False], ids=["by socket", "by address"])
def test_a_tenant_of_another_node_is_shown_and_changed_there_in_its_viewers_name(
    *, by_socket: bool
) -> None:
    with two_nodes(by_socket=by_socket) as nodes:
        nodes.two.world.control.pending["acme"] = 12_345
        browser = Browser(nodes.one, token(scope=Scope.OPERATE))
        assert "12,345" in browser.get("/ui/tenants/acme").text
        assert browser.send("/ui/tenants/acme/resize", workers="9").status_code == 303
        assert nodes.two.world.directory.get("acme").workers == 9  # type: ignore[union-attr]
        assert nodes.two.world.control.metadata[-1].actor == "ann"
        reader = Browser(nodes.one, token(scope=Scope.READ))
        assert reader.send("/ui/tenants/acme/resize", workers="8").status_code == 403


def test_what_differs_is_found_field_by_field() -> None:
    then = {"a": 1, "b": {"c": [1, {"d": True}], "e": None}, "rate": 1.0}
    other = {"a": 1, "b": {"c": [2], "e": 12345}, "rate": 2.0}
    assert [tuple(one) for one in differences(then, other) if one.differs] == [
        ("b.c", "1, d=yes", "2"),
        ("b.e", "", "12,345"),
    ]


def test_an_id_that_is_none_names_no_page(admin: Browser) -> None:
    for bad in ("NOT-AN-ID", "a%0Ab", "%3Cscript%3E", "a%2Fb", "%F0%9F%92%A9"):
        for path in (f"/ui/tenants/{bad}", f"/ui/tenants/{bad}/journal"):
            answer = admin.get(path)
            assert answer.status_code == 404
            assert "<script>" not in answer.text
        assert admin.send(f"/ui/tenants/{bad}/pause").status_code in {404, 405}


def test_of_large_messages_few_are_read_at_a_time_and_of_one_too_large_its_size(
    api: Served, admin: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_of_messages, "LARGEST", 12_500)
    rows, path = api.world.messages, "/ui/tenants/acme/messages"
    for number in range(7):
        size = 20_000 if number == 6 else 2000
        rows.add("acme", payload=f'{{"n": {number}, "s": "{"x" * size}"}}')
    newest = Written(admin.get(path).text)
    assert "too large to be shown here" in newest.text
    following = [given["href"] for _, given in newest.elements if "rel" in given]
    second = Written(admin.get(f"/ui/tenants/acme/{following[-1]}").text).text
    assert all((f'"n": {number}' in second) == (number in range(1, 6)) for number in range(7))
    rows.rows.clear()


def test_messages_are_shown_as_text_exactly_and_by_pages_to_those_who_may_see_payloads(
    api: Served, admin: Browser
) -> None:
    messages, path = api.world.messages, "/ui/tenants/acme/messages"
    for number in range(30):
        payload = f'{{"n": 12345678901234567890123{number:02}, "f": 1e400, "s": "<script>"}}'
        messages.add("acme", payload=payload)
    messages.add("acme", payload=None, body=EVIL.encode() + b"\xff" + b"x" * 1_000_000)
    messages.add("acme", payload="[" * 5000 + "]" * 5000)
    first = admin.get(path)
    assert first.status_code == 200
    assert len(first.content) < 80_000
    assert "<script>" not in first.text
    assert EVIL in Written(first.text).text
    assert '"n": 1234567890123456789012329, "f": 1e400' in Written(first.text).text
    refuse_what_a_strict_policy_would_stop(first.text)
    following = [given["href"] for _, given in Written(first.text).elements if "rel" in given]
    second = admin.get(f"/ui/tenants/acme/{following[-1]}").text
    assert "1234567890123456789012300" in second
    assert "There are none of this topic" in admin.get(path, topic="nothing").text
    for wrong in ({"order": "up"}, {"cursor": "x"}, {"topic": "x" * 300}):
        assert admin.get(path, **wrong).status_code in {400, 422}
    for scope, payloads, status in (
        (Scope.READ, False, 403), (Scope.OPERATE, False, 403), (Scope.READ, True, 200),
    ):  # fmt: skip
        browser = Browser(api, token(scope=scope, payloads=payloads))
        assert browser.get(path).status_code == status
        links = Written(browser.get("/ui/tenants/acme").text).links()
        assert any(one.endswith("/messages") for one in links) == payloads
    assert Browser(api, token("other")).get(path).status_code == 403
    messages.rows.clear()
