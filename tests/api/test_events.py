"""The journal over the real control socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tenantry.http.tokens import Scope
from tenantry.journal.port import JournalUnavailableError
from tests.api.page import token
from tests.api.serving import SECRET, Served, World, serving
from tests.fakes.stores import InMemoryEventStore
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        yield served


def _types(page: dict[str, Any]) -> list[str]:
    return [one["type"] for one in page["data"]]


def test_an_event_is_shown_with_who_caused_it(api: Served) -> None:
    api.control.post(
        "/tenants", json={"id": "acme", "name": "A"}, headers={"X-Request-ID": "req-1"}
    )
    page = api.control.get("/tenants/acme/events").json()
    assert _types(page) == ["TenantCreated", "TenantProvisioned"]
    first = page["data"][0]
    assert first.keys() == {
        "position", "stream", "version", "id", "tenant_id", "type", "schema_version", "data",
        "actor", "correlation_id", "causation_id", "trace_id", "recorded_at",
    }  # fmt: skip
    assert (first["position"], first["version"], first["stream"]) == (1, 1, "tenant-acme")
    assert first["data"]["name"] == "A"
    assert first["actor"].startswith("uid=")
    assert first["correlation_id"] == "req-1"


def test_events_are_read_page_by_page_with_a_cursor_that_never_ends(api: Served) -> None:
    for tenant_id in ("a", "b", "c"):
        api.world.create(tenant_id)
    seen, cursor = [], None
    for _ in range(5):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.control.get("/events", params=params).json()
        seen += [one["position"] for one in page["data"]]
        cursor = page["next_cursor"]
        assert cursor
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_deleted_tenants_events_stay(api: Served) -> None:
    api.world.create("acme")
    api.control.delete("/tenants/acme")
    page = api.control.get("/tenants/acme/events").json()
    assert _types(page)[-2:] == ["DeletionRequested", "TenantDeleted"]


def test_a_first_page_says_what_is_archived_and_a_cursor_into_it_is_refused(api: Served) -> None:
    for tenant_id in ("a", "b"):
        api.world.create(tenant_id)
    into = api.control.get("/events", params={"limit": 1}).json()["next_cursor"]
    behind = api.control.get("/events", params={"limit": 2}).json()["next_cursor"]
    until = api.control.get("/events").json()["data"][1]["recorded_at"]
    api.world.journal.archive(2, "here:/archive")
    page = api.control.get("/events").json()
    assert [one["position"] for one in page["data"]] == [3, 4]
    assert page["archived"] == {
        "until_position": 2, "until": until, "archives": ["here:/archive"]
    }  # fmt: skip
    assert "archived" not in api.control.get("/events", params={"cursor": behind}).json()
    for path, params in (("/events", {"cursor": into}), ("/tenants/a", {"at": "1"})):
        answer = api.control.get(path, params=params)
        assert answer.status_code == 410
        assert answer.json()["type"] == "urn:problem-type:tenantry:events-archived"
        assert "here:/archive" in answer.json()["detail"]
    assert api.control.get("/tenants/a", params={"at": "2"}).json()["state"] == "active"
    assert api.control.get("/tenants/a", params={"at": "2020-01-01T00:00:00Z"}).status_code == 404
    assert api.control.get("/tenants/a/events").json()["data"] == []
    assert "archived" not in api.control.get("/tenants/b/events").json()


def test_a_tenant_is_told_when_its_events_were_and_not_where_they_are() -> None:
    with serving(World(jwt_secret=SECRET)) as api:
        api.world.create("acme")
        api.world.create("other")
        api.world.journal.archive(2, "here:/archive")
        headers = {"Authorization": f"Bearer {token('acme', Scope.TENANT)}"}
        page = api.tcp.get("/tenants/acme/events", headers=headers)
        assert page.json()["archived"]["archives"] == []
        assert page.json()["data"] == []
        past = api.tcp.get("/tenants/acme", params={"at": "1"}, headers=headers)
        assert past.status_code == 410
        for answer in (page, past):
            assert "here" not in answer.text


def test_an_unknown_tenant_has_no_events(api: Served) -> None:
    assert api.control.get("/tenants/nobody/events").status_code == 404


def test_a_wait_ends_with_an_empty_page_when_nothing_happens(api: Served) -> None:
    started = time.monotonic()
    page = api.control.get("/events", params={"wait": 0.2}).json()
    assert page["data"] == []
    assert time.monotonic() - started >= 0.2
    assert api.control.get("/events", params={"cursor": page["next_cursor"]}).status_code == 200


def _waiting(api: Served, path: str, cursor: str, seconds: float = 20) -> dict[str, Any]:
    transport = httpx.HTTPTransport(uds=str(api.path))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=DEADLINE) as client:
        answer = client.get(path, params={"cursor": cursor, "wait": seconds})
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page


def _hearing(api: Served, path: str, cursor: str) -> dict[str, Any]:
    """Wait as often as it takes to hear of something: all are to wait at the same time."""
    while not (page := _waiting(api, path, cursor))["data"]:
        cursor = page["next_cursor"]
    return page


def _until_following(api: Served, waiting: int) -> None:
    tail = api.tail()
    eventually(lambda: len(tail._waiters) >= waiting and tail._ready.is_set())


def test_many_wait_on_one_thread_and_each_hears_of_its_own_tenant(api: Served) -> None:
    for tenant_id in ("quiet", "loud"):
        api.world.create(tenant_id)
    paths = ["/tenants/quiet/events"] * 15 + ["/tenants/loud/events"] * 15 + ["/events"] * 15
    cursors = {path: api.control.get(path).json()["next_cursor"] for path in set(paths)}
    with ThreadPoolExecutor(45) as threads:
        pages = [threads.submit(_hearing, api, path, cursors[path]) for path in paths]
        _until_following(api, 45)
        quiet, others = pages[:15], pages[15:]
        api.control.post("/tenants/loud/pause")
        assert [_types(page.result(DEADLINE)) for page in others] == [["TenantPaused"]] * 30
        assert not any(page.done() for page in quiet)
        api.control.post("/tenants/quiet/pause")
        heard = [page.result(DEADLINE) for page in quiet]
    assert [_types(page) for page in heard] == [["TenantPaused"]] * 15
    assert {one["tenant_id"] for page in heard for one in page["data"]} == {"quiet"}


def test_a_tenant_is_heard_however_far_behind_its_cursor_is(api: Served) -> None:
    api.world.create("acme")
    cursor = api.control.get("/tenants/acme/events").json()["next_cursor"]
    for number in range(40):
        api.world.create(f"other-{number}")
    with ThreadPoolExecutor(1) as threads:
        page = threads.submit(_hearing, api, "/tenants/acme/events", cursor)
        _until_following(api, 1)
        api.control.post("/tenants/acme/pause")
        assert _types(page.result(DEADLINE)) == ["TenantPaused"]


def test_a_stopping_server_ends_the_waiting(api: Served) -> None:
    with ThreadPoolExecutor(1) as threads:
        cursor = api.control.get("/events").json()["next_cursor"]
        page = threads.submit(_waiting, api, "/events", cursor, 30)
        _until_following(api, 1)
        assert api.stop()
        assert page.result(DEADLINE)["data"] == []


def test_a_journal_that_goes_away_ends_the_waiting_with_503(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> list[Any]:
        raise JournalUnavailableError("away")

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(
            httpx.get, f"{api.url}/events", params={"wait": 20}, timeout=DEADLINE, trust_env=False
        )
        _until_following(api, 1)
        for name in ("wait_for_events", "read_all"):
            monkeypatch.setattr(InMemoryEventStore, name, away)
        assert future.result(DEADLINE).status_code == 503
