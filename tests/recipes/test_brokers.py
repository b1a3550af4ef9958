"""A broker: every adapter that is registered is held against the port's contract suite."""

from __future__ import annotations

from tenantry.broker.select import ADAPTERS
from tests.contract import test_broker


def test_every_adapter_that_is_registered_is_held_against_the_contract() -> None:
    registered = {one.__name__.split(".")[-2] for one in ADAPTERS.values()}
    held = {kind.partition("-")[0] for kind in test_broker.KINDS}
    assert registered <= held
