"""Process 1 of a container: orphans are buried, signals arrive, the exit code is the program's."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import DEADLINE

REPOSITORY = Path(__file__).parents[2]
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

# What `tenantry run` does first; then a program with a child of its own, and an orphan that ends.
PROGRAM = """
import os, signal, subprocess, sys
from pathlib import Path
from tenantry.process import startup_signals

startup_signals.stand_before(["--config", "x", "run"])

def of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

assert os.getpid() != 1 and os.getppid() == 1
own = subprocess.Popen(["sh", "-c", "exit 7"])
orphan = int(subprocess.check_output(["sh", "-c", "sleep 60 >/dev/null & echo $!"]))
assert of(orphan)[1] == "1"
os.kill(orphan, signal.SIGKILL)
while Path(f"/proc/{orphan}").exists():
    pass
assert own.wait() == 7
numbers = {signal.SIGTERM, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
print(signal.Signals(signal.sigwait(numbers)).name, flush=True)
ENDING
"""


def _can_be_process_one() -> bool:
    try:
        done = subprocess.run([*APART, "true"], capture_output=True, timeout=DEADLINE, check=False)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif("not _can_be_process_one()", reason="takes the right to make namespaces")
@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_process_one_buries_orphans_and_leaves_the_programs_own_children_to_it(
    ending: str, code: int
) -> None:
    script = PROGRAM.replace("ENDING", ending)
    process = subprocess.Popen(
        [*APART, sys.executable, "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "ready\n"
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        subprocess.run(["kill", f"-{int(signal.SIGHUP)}", first], check=True)
        assert process.stdout.readline() == "SIGHUP\n"
        assert process.wait(DEADLINE) == code
