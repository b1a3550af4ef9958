"""`tenantry top`, in one frame and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from tenantry.cli.main import main
from tenantry.control.port import ActorStatus
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    # The API runs in this process: its log must not mingle with what the command prints.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with serving(World()) as served:
        monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(served.path))
        monkeypatch.setenv("TENANTRY_CONFIG", os.devnull)
        yield served
    structlog.reset_defaults()


def tenant(name: str, *children: ActorStatus, mailbox: int = 0, restarts: int = 0) -> ActorStatus:
    return ActorStatus(
        name=name, kind="Tenant", state="active", mailbox=mailbox, restarts=restarts,
        children=children,
    )  # fmt: skip


def worker(number: int, state: str) -> ActorStatus:
    return ActorStatus(name=f"worker-{number}", kind="Worker", state=state, mailbox=1, restarts=2)


def show(api: Served) -> None:
    """Have two tenants work: acme fast, globex not, with a worker that hangs; one is parked."""
    control = api.world.control
    for name in ("acme", "globex", "initech"):
        api.world.create(name)
    runtimes = {name: control.runtime(name) for name in ("acme", "globex", "initech")}
    acme, globex, initech = (one for one in runtimes.values() if one is not None)
    control.system = replace(
        control.system,
        tree=replace(
            control.system.tree,
            children=(
                tenant("acme", worker(1, "busy"), worker(2, "busy"), mailbox=5),
                tenant("globex", worker(1, "stuck"), restarts=1),
                tenant("initech"),
                ActorStatus(name="acme", kind="Reconciler", state="idle", mailbox=0, restarts=0),
            ),
        ),
        abandoned=("globex/worker-2",),
        tenants={
            "acme": replace(acme, rate=1234.5, stored=99_999, pending=1),
            "globex": replace(globex, pending=700, consuming=False),
            "initech": replace(
                initech, parked="kept failing", parked_at=datetime(2026, 1, 2, tzinfo=UTC)
            ),
        },
    )


def test_a_frame_in_json_has_totals_and_the_busiest_first(
    api: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    show(api)
    assert main(["top", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["tenant_id"] for one in found["tenants"]] == ["acme", "globex", "initech"]
    assert found["totals"]["pending"] == 701
    assert found["totals"]["rate"] == 1234.5
    assert found["totals"]["parked"] == 1
    assert found["totals"]["workers_busy"] == 2
    acme, globex, initech = found["tenants"]
    assert (acme["workers_busy"], acme["mailbox"], acme["restarts"]) == (2, 7, 2)
    assert (globex["stuck"], globex["restarts"]) == (["worker-1"], 3)
    assert (initech["parked"], initech["parked_at"]) == (
        "kept failing",
        "2026-01-02T00:00:00.000000Z",
    )
    assert found["abandoned"] == ["globex/worker-2"]


def test_a_frame_is_sorted_as_asked_and_plain_where_it_is_piped(
    api: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    show(api)
    assert main(["top", "--sort", "pending"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("running, ready")
    assert "3 tenants, 1 parked; 2 of 9 workers busy; 1,234.5 messages/s" in lines[1]
    assert lines[2] == "threads that hang: globex/worker-2"
    assert [line.split()[0] for line in lines[3:]] == ["TENANT", "globex", "acme", "initech"]
    assert "active, stuck: worker-1" in lines[4]


def test_an_empty_daemon_has_a_frame_as_well(
    api: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["pending"] == 0


def read_until(terminal: int, text: str) -> str:
    seen, until = "", time.monotonic() + 60
    while text not in seen:
        assert select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0], seen
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(api: Served) -> None:
    show(api)
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tenantry.cli.main", "top", "--interval", "0.2"],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(theirs)
    try:
        read_until(terminal, "globex")
        control = api.world.control
        acme = replace(control.system.tenants["acme"], stored=123_456)
        control.system = replace(
            control.system, tenants={**control.system.tenants, "acme": acme}, ready=False,
            reasons=("the broker is away",),
        )  # fmt: skip
        seen = read_until(terminal, "123456")
        assert "not ready: the broker is away" in seen
        api.api.stop()
        read_until(terminal, "as it was: no daemon answers")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        os.close(terminal)
