"""What is done on the page: tenants created, limited, checked and deleted, messages published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from tenantry.api.access import TABLE, may
from tenantry.audit.balance import Account
from tenantry.broker.port import MessagesRefusedError
from tenantry.domain.limits import Limits
from tenantry.http.auth import Access
from tenantry.http.tokens import Scope
from tenantry.isolation.port import Check, IsolationReport
from tenantry.page import asking
from tenantry.page.serving import FORMS
from tenantry.page.settings import TOLD, changes, span
from tests.api.fakes import empty_account
from tests.api.page import Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import SECRET, Served, World, serving

EVIL = "<script>alert(1)</script>'\"&"
PASSWORD = "<code>shown once</code>"
OF_ACME = re.compile(r"/ui/(tenants/acme(/|$)|nodes|new-tenant)")
NOT_NOW = {
    "/ui/tenants/{tenant_id}/resume", "/ui/nodes/{node}/undrain",
    "/ui/tenants/{tenant_id}/dead-letters/replay", "/ui/tenants/{tenant_id}/dead-letters/discard",
    "/ui/tenants/{tenant_id}/consumer-access/revoke",
}  # fmt: skip
"""Forms that are there when a tenant is paused or has consumer access, a node is drained, or there
are dead letters.
"""


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme", name=EVIL, topics=("logs",))
        yield served


@pytest.fixture
def admin(api: Served) -> Browser:
    return Browser(api, token())


def _filled(page: str) -> dict[str, str]:
    """Give the fields of a page's form as they are."""
    inputs = (given for tag, given in Written(page).elements if tag == "input" and "name" in given)
    return {
        given["name"] or "": given.get("value") or ""
        for given in inputs
        if given.get("type") != "checkbox"
    }


def _said(page: str) -> str:
    return " ".join(Written(page).text.split())


def _is_fit_to_be_seen(page: str) -> bool:
    refuse_what_a_strict_policy_would_stop(page)
    return "<script>alert" not in page and len(page.encode()) < 80_000


def _actor(api: Served) -> str:
    return api.world.control.metadata[-1].actor


def test_a_tenant_is_created_once_for_a_form_and_its_password_shown_on_that_answer_alone(
    api: Served, admin: Browser
) -> None:
    form = {
        **_filled(admin.get("/ui/new-tenant").text),
        "name": "New",
        "id": "fresh",
        "topics": "events, logs:2 orders:4:ordered",
        "partitions": "3",
    }
    made, again = (admin.send("/ui/new-tenant", **form) for _ in range(2))
    assert (made.status_code, made.headers["cache-control"]) == (200, "no-store")
    assert PASSWORD in made.text
    assert "tenant_fresh_producer" in made.text
    assert PASSWORD not in again.text
    assert "were shown to an earlier call" in _said(again.text)
    assert _actor(api) == "ann"
    tenant = api.control.get("/tenants/fresh").json()
    assert [tuple(one.values()) for one in tenant["topic_settings"]] == [
        ("events", 3, "none"), ("logs", 2, "none"), ("orders", 4, "partition"),
    ]  # fmt: skip
    assert "shown once" not in _said(admin.get("/ui/tenants/fresh").text)
    for page in (made, again):
        assert _is_fit_to_be_seen(page.text)


@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ({"name": ""}, 422, "name: "),
        ({"id": "NO"}, 422, "id: "),
        ({"id": "acme"}, 409, "acme"),
        ({"topics": "a:b:c"}, 422, "is no topic"),
        ({"workers": "x"}, 422, "workers: "),
        ({"workers": "65", "key": "a\r\nb"}, 422, "workers: "),
        ({"partitions": "9" * 5000}, 422, "partitions: "),
    ],
    ids=str,
)
def test_what_can_be_no_tenant_is_told_on_the_form_and_what_was_typed_is_kept(
    api: Served, admin: Browser, wrong: dict[str, str], status: int, told: str
) -> None:
    before = len(api.world.journal.read_all())
    answer = admin.send("/ui/new-tenant", **{"name": EVIL, "topics": "kept", **wrong})
    assert answer.status_code == status
    assert told in _said(answer.text)
    assert _filled(answer.text)["name"] == wrong.get("name", EVIL)
    assert _is_fit_to_be_seen(answer.text)
    assert len(api.world.journal.read_all()) == before


def test_a_form_is_small_again_whatever_was_put_into_it(admin: Browser) -> None:
    for path in ("/ui/new-tenant", "/ui/tenants/acme/publish", "/ui/tenants/acme/limits"):
        for name in ("name", "payload", "rate", "id"):
            answer = admin.send(path, **{"name": "A", "was-rate": "", name: '"' * 20_000})
            assert _is_fit_to_be_seen(answer.text)


@pytest.mark.parametrize("retain", [True, False], ids=["kept", "dropped"])
def test_a_tenant_is_deleted_when_its_id_is_typed(
    api: Served, admin: Browser, *, retain: bool
) -> None:
    api.world.create("leaving", name=EVIL)
    path, given = "/ui/tenants/leaving/delete", {"retain": "yes"} if retain else {}
    asked = [admin.send(path, **given), admin.send(path, typed="leavin", **given)]
    assert [one.status_code for one in asked] == [200, 422]
    assert all(_is_fit_to_be_seen(one.text) for one in asked)
    assert ("checked" in asked[1].text) == retain
    assert api.control.get("/tenants/leaving").status_code == 200
    done = admin.send(path, typed="leaving", **given)
    overview = api.tcp.get(
        done.url.join(done.headers["location"]), headers={"Cookie": f"tenantry_session={token()}"}
    )
    assert done.status_code == 303
    assert "Tenant leaving is deleted" not in _said(overview.text)  # that is another session
    state = api.world.directory.get("leaving")
    assert state is not None
    assert (state.exists, state.retained) == (False, retain)
    assert _actor(api) == "ann"


def test_what_was_done_is_told_to_who_did_it_there_and_then(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.world.create("told")
    mine, others = token(), token(scope=Scope.OPERATE)
    done = Browser(api, mine).send("/ui/tenants/told/pause")
    led = done.url.join(done.headers["location"])
    note = led.params["done"]

    def said(session: str, tenant_id: str, note: str) -> bool:
        page = Browser(api, session).get(f"/ui/tenants/{tenant_id}", done=note).text
        return 'class="done"' in page

    assert led.path == "/ui/tenants/told"
    assert said(mine, "told", note)
    assert not said(others, "told", note)
    assert not said(mine, "acme", note)
    for made_up in ("pause", "resize", "", "x" * 600, note[:-1], f"{note}A", "ü", EVIL):
        assert not said(mine, "told", made_up)
    monkeypatch.setattr(asking, "NOTE_SECONDS", -1)
    assert not said(mine, "told", note)


def test_every_limit_is_on_the_form_and_what_is_emptied_is_lifted(
    api: Served, admin: Browser
) -> None:
    path = "/ui/tenants/limited/limits"
    api.world.create("limited")
    assert list(TOLD) == [one.name for one in fields(Limits)]
    empty = _filled(admin.get(path).text)
    assert len(empty) == 2 * len(TOLD)
    given = {
        "weight": "3", "rate": "100", "burst": "200", "backlog.messages": "1000",
        "backlog.bytes": "2000", "connections": "4", "channels": "5", "workers_min": "2",
        "workers_max": "8", "retention.age": "36h", "retention.rows": "10",
    }  # fmt: skip
    done = admin.send(path, **{**empty, **given})
    assert done.status_code == 303
    assert _actor(api) == "ann"
    limits = api.control.get("/tenants/limited").json()["limits"]
    assert limits == {
        "weight": 3, "rate": 100, "burst": 200, "backlog": {"messages": 1000, "bytes": 2000},
        "connections": 4, "channels": 5, "workers_min": 2, "workers_max": 8,
        "retention": {"age": 129_600, "rows": 10},
    }  # fmt: skip
    full = _filled(admin.get(path).text)
    assert {name: full[name] for name in given} == given
    cleared = {**full, **dict.fromkeys(given, "")}
    assert admin.send(path, **cleared).status_code == 303
    limits = api.control.get("/tenants/limited").json()["limits"]
    assert {name: one for name, one in limits.items() if one is not None} == {"weight": 1}


def test_what_is_left_as_it_was_on_a_form_undoes_nothing_that_others_did_meanwhile(
    api: Served, admin: Browser
) -> None:
    api.world.create("shared")
    form = _filled(admin.get("/ui/tenants/shared/limits").text)
    api.control.put("/tenants/shared/limits", json={"rate": 7}).raise_for_status()
    admin.send("/ui/tenants/shared/limits", **{**form, "connections": "9"})
    limits = api.control.get("/tenants/shared").json()["limits"]
    assert (limits["rate"], limits["connections"]) == (7, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", "0"), ("rate", "x"), ("burst", "5"), ("retention.age", EVIL), ("weight", "1001")],
)
def test_a_limit_that_can_not_be_is_told_on_the_form_and_nothing_is_changed(
    api: Served, admin: Browser, name: str, value: str
) -> None:
    before = api.control.get("/tenants/acme").json()["version"]
    form = _filled(admin.get("/ui/tenants/acme/limits").text)
    answer = admin.send("/ui/tenants/acme/limits", **{**form, name: value})
    assert answer.status_code == 422
    assert "Not changed:" in _said(answer.text)
    assert _filled(answer.text)[name] == value
    assert _filled(answer.text)[f"was-{name}"] == form[f"was-{name}"]
    assert _is_fit_to_be_seen(answer.text)
    assert api.control.get("/tenants/acme").json()["version"] == before


def test_changes_are_what_differs_from_what_was_there() -> None:
    given = {
        "rate": " 5 ", "was-rate": "5", "burst": "", "was-burst": "10", "retention.age": "7d",
        "retention.rows": "1", "was-retention.rows": "1", "weight": "-0x", "nothing": "1",
    }  # fmt: skip
    assert changes(given) == {"burst": None, "retention": {"age": "7d"}, "weight": "-0x"}


def test_a_span_is_written_in_its_largest_unit() -> None:
    spans = [span(one) for one in (1, 90, 120, 7200, 86_400, 604_800, 604_801)]
    assert spans == ["1s", "90s", "2m", "2h", "1d", "1w", "604801s"]


def test_an_audit_is_made_when_it_is_asked_for_and_its_differences_told(
    api: Served, admin: Browser
) -> None:
    offered = admin.get("/ui/tenants/acme/checks")
    assert "Accepted" not in offered.text
    assert "It adds up." in admin.send("/ui/tenants/acme/audit").text
    books: dict[str, Account] = api.world.accounts.books
    books["acme"] = empty_account("acme", position=10, stored=10, rows=7, newest=10)
    found = admin.send("/ui/tenants/acme/audit")
    del books["acme"]
    assert "It does not add up." in _said(found.text)
    assert "3 rows of tenant acme are missing" in _said(found.text)
    assert _is_fit_to_be_seen(found.text)
    reader = Browser(api, token(scope=Scope.READ))
    assert "It adds up." in reader.send("/ui/tenants/acme/audit").text
    assert "isolation" not in reader.get("/ui/tenants/acme/checks").text
    for path in ("/ui/tenants/nobody/audit", "/ui/tenants/nobody/isolation"):
        assert admin.send(path).status_code == 404
    assert admin.get("/ui/tenants/nobody/checks").status_code == 404


def test_isolation_is_proven_of_the_tenant_alone_and_what_failed_is_told_in_small(
    api: Served, admin: Browser
) -> None:
    prover = api.world.prover
    assert "Isolated: it reaches its own" in _said(admin.send("/ui/tenants/acme/isolation").text)
    assert prover.asked[-1] == (["acme"], True)
    leak: dict[str, Any] = {"tenant_id": "acme", "action": "read", "allowed": True}
    prover.report = IsolationReport(
        checks=tuple(Check(owner=f"t-{n}", target=EVIL * 99, **leak) for n in range(300)),
        unjudged=tuple(f"{EVIL * 99}{n}" for n in range(300)),
        open=(EVIL * 99,) * 300,
    )
    found = admin.send("/ui/tenants/acme/isolation")
    prover.report = IsolationReport(checks=())
    assert "Not proven to be isolated." in _said(found.text)
    assert "0 of 300 attempts went as they should, on 300 other tenants." in _said(found.text)
    assert "and 290 more" in found.text
    assert EVIL in Written(found.text).text
    assert _is_fit_to_be_seen(found.text)


def test_a_test_message_is_published_as_it_was_typed_and_its_link_leads_to_it(
    api: Served, admin: Browser
) -> None:
    path, sent = "/ui/tenants/acme/publish", api.world.publishing.sent
    message_id = f"a/../{EVIL}?#"
    payload = '{"n":\r\n 12345678901234567890123, "s": "<script>alert(1)</script>"}'
    given = {"topic": "logs", "kind": "json", "payload": payload, "key": "k", "id": message_id}
    answer = admin.send(path, **given)
    assert answer.status_code == 200
    assert (sent[-1].body, sent[-1].message_id) == (
        payload.replace("\r", "").encode(), message_id,
    )  # fmt: skip
    assert sent[-1].routing_key == "logs.0"
    assert _is_fit_to_be_seen(answer.text)
    assert EVIL in Written(answer.text).text
    assert "12345678901234567890123" in answer.text  # it is there to be sent again
    link = next(one for one in Written(answer.text).links() if one.startswith("message?"))
    early = api.tcp.get(answer.url.join(link), headers={"Cookie": f"tenantry_session={token()}"})
    assert (early.status_code, _is_fit_to_be_seen(early.text)) == (404, True)
    api.world.messages.add("acme", id=message_id, payload=payload, headers='{"<b>": 1e400}')
    shown = api.tcp.get(answer.url.join(link), headers={"Cookie": f"tenantry_session={token()}"})
    api.world.messages.rows.clear()
    assert shown.status_code == 200
    assert '"n": 12345678901234567890123' in Written(shown.text).text
    assert "1e400" in shown.text
    assert _is_fit_to_be_seen(shown.text)


def test_what_is_no_json_is_published_as_text_alone(api: Served, admin: Browser) -> None:
    path, sent = "/ui/tenants/acme/publish", api.world.publishing.sent
    for payload in ("", "{", '1, "topic": "logs"', "[" * 5000, EVIL):
        before = len(sent)
        refused = admin.send(path, payload=payload)
        assert (refused.status_code, len(sent)) == (422, before)
        assert "the payload is no JSON" in _said(refused.text)
        assert _is_fit_to_be_seen(refused.text)
        assert admin.send(path, payload=payload, kind="text").status_code == 200
        assert len(sent) == before + 1
    assert sent[-1].body == b'"' + EVIL.replace('"', '\\"').encode() + b'"'


def test_why_a_message_was_not_taken_is_told_beside_the_form(api: Served, admin: Browser) -> None:
    path = "/ui/tenants/acme/publish"
    assert admin.send(path, payload="1", topic=EVIL).status_code == 404
    assert admin.send(path, payload="1", id="x" * 300).status_code == 422
    api.world.publishing.error = MessagesRefusedError(EVIL)
    refused = admin.send(path, payload="1")
    api.world.publishing.error = None
    assert refused.status_code == 503
    assert "Not published:" in _said(refused.text)
    assert _is_fit_to_be_seen(refused.text)
    assert admin.get("/ui/tenants/nobody/publish").status_code == 404


def test_one_message_is_shown_to_those_who_may_see_payloads_and_is_small(api: Served) -> None:
    rows, path = api.world.messages, "/ui/tenants/acme/message"
    rows.add("acme", id="large", payload=None, body=b'"' * 1_000_000, content_type='"' * 255)
    rows.add("acme", id="larger", payload=f'"{"x" * 2_200_000}"')
    for message_id, said in (("large", "1,000,000 characters"), ("larger", "too large")):
        shown = Browser(api, token()).get(path, id=message_id)
        assert said in _said(shown.text)
        assert _is_fit_to_be_seen(shown.text)
    for scope, payloads, status in (
        (Scope.READ, False, 403), (Scope.READ, True, 200), (Scope.OPERATE, False, 403),
    ):  # fmt: skip
        browser = Browser(api, token(scope=scope, payloads=payloads))
        assert browser.get(path, id="large").status_code == status
    assert Browser(api, token("acme")).get(path, id="large").status_code == 200
    assert Browser(api).get(path, id="large").status_code == 401
    rows.rows.clear()


@pytest.mark.parametrize("scope", [Scope.READ, Scope.OPERATE, Scope.ADMIN, Scope.TENANT])
def test_pages_offer_all_the_forms_that_their_viewer_may_send_and_no_others(
    api: Served, scope: Scope
) -> None:
    browser = Browser(api, token("acme" if scope is Scope.TENANT else None, scope))
    forms = {path.replace("{tenant_id}", "acme").replace("{node}", "one"): path for path in FORMS}
    offered: set[str] = set()
    ways, seen = ["/ui", "/ui/tenants/acme"], set()
    while ways:
        seen.add(way := ways.pop())
        page = browser.get(way)
        assert (way, page.status_code) in {(way, 200), ("/ui", 303)}
        written = Written(page.text)
        offered |= {
            forms[path]
            for tag, given in written.elements
            if tag == "form" and given["method"] == "post"
            and (path := page.url.join(given.get("action") or "").path) in forms
        }  # fmt: skip
        led = {page.url.join(one).path for one in written.links()}
        ways += [one for one in led - seen - {*ways} if one == "/ui" or OF_ACME.match(one)]
    assert Access.PUBLIC not in {TABLE[_parts(call)] for call in FORMS.values()}
    assert offered == {
        path
        for path, call in FORMS.items()
        if path not in NOT_NOW and may(_parts(call), scope, payloads=False)
    }


def _parts(call: str) -> tuple[str, str]:
    method, _, path = call.partition(" ")
    return method, path
