"""A broker: every adapter that is registered is held against the port's contract suite."""

from __future__ import annotations

from tenantry.broker.select import ADAPTERS
from tests.brokers import KINDS


def test_every_adapter_that_is_registered_is_held_against_the_contract() -> None:
    held = {id(kind.adapter) for kind in KINDS.values() if kind.adapter is not None}
    assert held == {id(adapter) for adapter in ADAPTERS.values()}
