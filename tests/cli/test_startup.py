"""A command imports what it needs, and no more: whoever calls one waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preloaded
from tests.api.serving import Served
from tests.waiting import DEADLINE

ROOT = Path(__file__).parents[2]

HEAVY = frozenset(
    {
        "asyncio", "fastapi", "httpx", "pika", "prometheus_client", "psycopg", "pydantic", "pykka",
        "rich", "structlog", "uvicorn",
    }
)  # fmt: skip

LISTED = """
import sys
from tenantry.cli.main import main
code = main(sys.argv[1:])
print(code, *sorted({one.partition(".")[0] for one in sys.modules}), file=sys.stderr)
"""


def imported(*arguments: str) -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, "-c", LISTED, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return HEAVY.intersection(modules)


def test_telling_the_version_imports_next_to_nothing() -> None:
    assert imported("--version") == frozenset()


@pytest.mark.usefixtures("_isolated")
def test_asking_the_daemon_takes_the_settings_and_nothing_else(api: Served) -> None:
    api.world.create("acme")
    assert imported("status") == {"pydantic"}


def test_without_tracing_a_daemon_loads_nothing_that_traces() -> None:
    command = [sys.executable, "-m", "tests.loaded"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = preloaded.run(command, cwd=ROOT, env=environment, timeout=DEADLINE)
    there = done.stdout.split()
    assert {"tenantry.daemon", "tenantry.tracing.port"} <= {*there}, done.stderr
    # The library's bare interface is FastAPI's to load.
    unwanted = ("opentelemetry.sdk", "opentelemetry.exporter", "tenantry.tracing.exporting")
    assert [one for one in there if one.startswith(unwanted)] == []
