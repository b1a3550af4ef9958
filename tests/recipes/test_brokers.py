"""A broker: every adapter that is registered is held against the port's contract suite."""

from __future__ import annotations

from tenantry.broker.select import ADAPTERS, SYSTEMS
from tests.brokers import KINDS


def test_every_adapter_that_is_registered_is_held_against_the_contract() -> None:
    held = {kind.adapter.__name__ for kind in KINDS.values() if kind.adapter is not None}
    registered = {adapter.__name__ for adapter in ADAPTERS.values()}
    assert held == registered, "add a kind to tests/brokers.py"


def test_every_adapter_that_is_registered_has_a_name_in_traces() -> None:
    assert SYSTEMS.keys() == ADAPTERS.keys(), "add it to SYSTEMS in tenantry/broker/select.py"
