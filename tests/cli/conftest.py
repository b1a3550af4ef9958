"""A command line in this process, and a real API over ports in memory for it."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tenantry.cli.main import main
from tenantry.telemetry.logging import configure
from tests.api.serving import Served, World, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # The API runs in this process: its log must not mingle with what a command prints.
    configure("error", "json", io.StringIO())
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serving(World()) as served:
        monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(served.path))
        yield served


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return invoke
