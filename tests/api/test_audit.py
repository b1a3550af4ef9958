"""Audits over the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.broker.port import BrokerUnavailableError, QueueCounts
from tests.api.fakes import empty_account
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        for tenant_id in ("acme", "globex", "initech"):
            served.world.create(tenant_id)
        yield served


def test_an_audit_shows_what_was_counted_and_what_is_there(api: Served) -> None:
    api.world.accounts.books["acme"] = empty_account(
        "acme", position=112, stored=110, duplicates=2, dead_lettered=3, removed=100, aged=60,
        crowded=40, rows=7, newest=112, kept=3, replayed=1, discarded=1, listed=1,
    )  # fmt: skip
    api.world.queues.counts = {"acme": QueueCounts(ready=5, dead_letters=1)}
    answer = api.control.get("/tenants/acme/audit")
    assert answer.status_code == 200
    assert answer.json() == {
        "tenant_id": "acme",
        "balanced": False,
        "accepted": 115,
        "stored": 110,
        "duplicates": 2,
        "dead_lettered": 3,
        "in_flight": 0,
        "waiting": 5,
        "removed": 100,
        "removed_by": {"age": 60, "rows": 40},
        "rows": 7,
        "dead_letters": {
            "kept": 3, "replayed": 1, "discarded": 1, "missing": 0, "listed": 1, "queued": 1,
        },
        "differences": [
            {
                "kind": "rows",
                "expected": 10,
                "found": 7,
                "text": "3 rows of tenant acme are missing: counted 110 stored less 100 removed,"
                " 7 rows",
            }
        ],
        "moving": False,
        "uncounted": None,
    }  # fmt: skip


def test_all_tenants_are_audited_page_by_page(api: Served) -> None:
    api.world.accounts.books["globex"] = empty_account("globex", stored=1, position=1, rows=0)
    found, balanced, cursor = [], [], ""
    while True:
        page = api.control.get(f"/audit?limit=1{cursor}").json()
        found += [one["tenant_id"] for one in page["data"]]
        balanced.append(page["balanced"])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == ["acme", "globex", "initech"]
    assert balanced == [True, False, True]


def test_a_quick_audit_counts_no_rows_and_compares_the_rest(api: Served) -> None:
    api.world.accounts.books["acme"] = empty_account("acme", stored=10, rows=7, position=9)
    shown = api.control.get("/tenants/acme/audit", params={"quick": "true"}).json()
    assert (shown["rows"], shown["uncounted"]) == (None, "not asked for")
    assert [one["kind"] for one in shown["differences"]] == ["counts"]


def test_rows_that_take_too_long_to_count_are_named(api: Served) -> None:
    api.world.accounts.slow.add("acme")
    shown = api.control.get("/tenants/acme/audit").json()
    assert (shown["rows"], shown["balanced"]) == (None, True)
    assert "acme" in shown["uncounted"]


def test_without_the_broker_its_figures_are_null(api: Served) -> None:
    api.world.queues.error = BrokerUnavailableError("away")
    shown = api.control.get("/tenants/acme/audit").json()
    assert (shown["waiting"], shown["dead_letters"]["queued"]) == (None, None)


def test_there_is_no_audit_of_what_is_no_tenant(api: Served) -> None:
    assert api.control.get("/tenants/nobody/audit").status_code == 404
    assert api.control.get("/audit?cursor=nonsense").status_code == 400
    assert api.control.get("/tenants/acme/audit?quick=perhaps").status_code == 422
