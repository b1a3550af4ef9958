"""Every experiment of `tests/faults`, for a few rounds: the ledger is clean after each fault."""

from __future__ import annotations

import pytest

from tests.faults.catalogue import EXPERIMENTS, conduct

SEED = 20_260


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.few])
def test_the_ledger_is_clean_after(name: str) -> None:
    figures = conduct(name, rounds=EXPERIMENTS[name].few, seed=SEED)
    assert figures.ok, "\n".join(figures.lines())
    if figures.skipped is not None:
        pytest.skip(figures.skipped)
