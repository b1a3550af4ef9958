"""Experiments of `tests/faults`, for a few rounds: the ledger is clean after each fault."""

from __future__ import annotations

import pytest

from tests.depth import THOROUGH, examples
from tests.faults.catalogue import EXPERIMENTS, conduct
from tests.rabbitmq_node import PrivateNode

SEED = 20_260

ELSEWHERE = {
    "kill", "leader", "nodes", "sigterm", "start-up", "replay", "embedded-fuzz", "failover",
    "embedded-failover",
}  # fmt: skip
"""Experiments for thorough runs only, as smaller tests cover the same: kills under load in
`test_crashes`, a frozen leader in `test_standby`, a killed node in `test_nodes`, graceful ends in
`test_shutdown` and at any moment of a start in `test_starting`, a kill during a replay in
`test_http_dead_letters`, odd messages in SQL in `test_tenants_input`, a database with two hosts in
`test_database_silence`."""

TRIED = {
    name: one
    for name, one in EXPERIMENTS.items()
    if one.few and (THOROUGH or name not in ELSEWHERE)
}


ON_A_NODE = [name for name, one in TRIED.items() if one.own_broker and one.broker == "rabbitmq"]


@pytest.mark.parametrize("name", [name for name in TRIED if name not in ON_A_NODE])
def test_the_ledger_is_clean_after(name: str) -> None:
    _conduct(name, None)


@pytest.mark.parametrize("name", ON_A_NODE)
def test_the_ledger_is_clean_after_the_broker(name: str, breakable_node: PrivateNode) -> None:
    _conduct(name, breakable_node)


def _conduct(name: str, node: PrivateNode | None) -> None:
    one = EXPERIMENTS[name]
    rounds = examples(one.few, max(one.few, one.more))
    figures = conduct(name, rounds=rounds, seed=SEED, node=node, light=not THOROUGH)
    assert figures.ok, "\n".join(figures.lines())
    if figures.skipped is not None:
        pytest.skip(figures.skipped)
