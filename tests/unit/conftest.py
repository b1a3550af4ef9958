"""Fixtures of the tests that run a tree of actors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tenantry.actors import backoff
from tests.fakes.actors import Tree, running_tree


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave hardly a pause between restarts, and forget no failure however slow they are."""
    monkeypatch.setattr(backoff, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(backoff, "Intensity", partial(backoff.Intensity, within=3600.0))


@pytest.fixture
def tree() -> Iterator[Tree]:
    with running_tree() as tree:
        yield tree
