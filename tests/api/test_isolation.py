"""Proofs of isolation over the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.isolation.port import Check, IsolationReport
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme")
        yield served


def test_a_proof_shows_what_was_tried_and_what_failed(api: Served) -> None:
    leak = Check(tenant_id="acme", owner="x", action="read", target="q", allowed=True)
    denial = Check(tenant_id="acme", owner="acme", action="write", target="s", allowed=False)
    api.world.prover.report = IsolationReport(
        checks=(leak, denial), unjudged=("tenant y: away",), open=("locks (a remedy)",)
    )
    shown = api.control.post("/isolation", json={"tenants": ["acme"], "broker": False}).json()
    assert api.world.prover.asked == [(["acme"], False)]
    assert shown == {
        "isolated": False,
        "leaks": ["tenant acme is allowed to read from q of tenant x"],
        "denials": ["tenant acme is refused to write to its own s"],
        "unjudged": ["tenant y: away"],
        "open": ["locks (a remedy)"],
        "checks": [
            {"tenant": "acme", "owner": "x", "action": "read", "target": "q", "allowed": True,
             "holds": False},
            {"tenant": "acme", "owner": "acme", "action": "write", "target": "s",
             "allowed": False, "holds": False},
        ],
    }  # fmt: skip


def test_who_can_not_be_judged_is_not_taken_for_isolated(api: Served) -> None:
    assert api.control.post("/isolation", json={}).json()["isolated"] is True
    api.world.prover.report = IsolationReport(checks=(), unjudged=("tenant acme: away",))
    assert api.control.post("/isolation", json={}).json()["isolated"] is False


def test_only_tenants_that_exist_are_proven(api: Served) -> None:
    assert api.control.post("/isolation", json={"tenants": ["nobody"]}).status_code == 404
    assert api.control.post("/isolation", json={"tenants": "acme"}).status_code == 422
    assert api.world.prover.asked == []
