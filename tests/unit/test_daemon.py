"""What the daemon makes of an end that comes before it has begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenantry import daemon
from tenantry.process.signals import Signals, StopRequestedError
from tenantry.settings import Settings, load


def test_a_signal_that_comes_while_its_handlers_are_put_in_place_ends_it_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def heard(_: Signals) -> Iterator[None]:
        raise StopRequestedError("SIGTERM")
        yield

    def settings() -> Settings:
        return load(None, environ={"TENANTRY_STATE_DIR": str(tmp_path / "state")})

    monkeypatch.setattr(Signals, "heard", heard)
    monkeypatch.chdir(tmp_path)
    assert daemon.serve(settings(), settings) == 0
    assert not (tmp_path / "state").exists()
