"""SIGTERM at any moment of the start ends the daemon gracefully, once its handler is set."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import preloaded
from tests.acceptance.program import ROOT, Program
from tests.depth import examples
from tests.waiting import DEADLINE, eventually

pytestmark = pytest.mark.own_interpreter


def hears(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal, by the kernel's account."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_modules_are_loaded_ends_the_daemon_with_a_line(
    program: Program, number: signal.Signals
) -> None:
    process = program.spawn()
    # Python has its own handler for SIGINT; SIGHUP's is the last that the program sets.
    eventually(lambda: hears(process.pid, signal.SIGHUP), what="handlers")
    process.send_signal(number)
    assert program.wait(DEADLINE) == 0
    assert [one["signal"] for one in program.events("daemon.stopped_while_starting")] == [
        number.name
    ]


def test_the_file_of_the_daemon_hears_signals_as_early(program: Program) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "daemon.py"), "run"],
        env=program.environment(),
        cwd=program.directory,
        stderr=subprocess.PIPE,
    )
    eventually(lambda: hears(process.pid, signal.SIGTERM), what="a handler")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert b"daemon.stopped_while_starting" in said


def test_other_commands_end_by_a_signal_as_commands_do(program: Program) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import tenantry.cli, time; print(1, flush=True); time.sleep(60)",
         "tenant", "create", "run"],
        env=program.environment(),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == -signal.SIGTERM
    process.stdout.close()


def stop_at_a_random_moment(program: Program, longest: float) -> None:
    """Start the daemon, send SIGTERM after a while, and expect an end without any waiting."""
    process = program.spawn(TENANTRY_SHUTDOWN_DEADLINE_SECONDS="3600")
    eventually(lambda: hears(process.pid, signal.SIGTERM), what="a handler")
    time.sleep(random.uniform(0, longest))
    process.send_signal(signal.SIGTERM)
    assert program.wait() == 0


def test_sighup_at_a_start_is_harmless_and_sigterm_at_any_moment_of_it_ends_it(
    program: Program,
) -> None:
    process = program.spawn()
    # So early there are no settings yet to reload.
    eventually(lambda: hears(process.pid, signal.SIGHUP), what="a handler")
    process.send_signal(signal.SIGHUP)
    program.wait_ready()
    assert program.create().id
    assert program.stop() == 0
    for _ in range(examples(2, 8)):
        stop_at_a_random_moment(program, 2.5)
    program.own_interpreter = not preloaded.available()  # the last start may be preloaded again
    program.start()
    assert len(program.get("/tenants")["data"]) == 1
