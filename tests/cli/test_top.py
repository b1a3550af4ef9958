"""`tenantry top`, in one frame and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from tenantry.cli.client import ControlClient
from tenantry.cli.main import main
from tenantry.cli.output import DaemonUnreachableError
from tenantry.control.port import ActorStatus, SystemStatus
from tests.api.serving import Served, World, serving, short_directory
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


MOVE = re.compile(r"\x1b\[(\d+);1H")
LOOKS = re.compile(r"\x1b\[[0-9;]*m")
ENDS = ("\x1b[?1049l", "\x1b[?25h", "\x1b[?7h")
"""What was on the screen is there again, so is the cursor; lines that are too long wrap again."""


class Screen:
    """A terminal with the program on it, and what stands on its lines."""

    def __init__(self, width: int, height: int) -> None:
        # Theirs stays open here as well: what the program has written last can be read then.
        self.terminal, self.theirs = pty.openpty()
        self.resize(width, height)
        self.modes = termios.tcgetattr(self.terminal)
        self.lines: dict[int, str] = {}
        self.seen = ""
        env = {name: value for name, value in os.environ.items() if name not in SIZES}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tenantry.cli.main", "top", "--interval", "0.2"],
            stdin=self.theirs, stdout=self.theirs, stderr=subprocess.PIPE,
            env={**env, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def wait(self, *texts: str, without: str | None = None) -> list[str]:
        """Wait until all this stands on the screen; give its lines."""
        until = time.monotonic() + DEADLINE
        while True:
            shown = sorted(self.lines.items())
            text = "\n".join(line for number, line in shown if number <= self.height)
            if all(one in text for one in texts) and (without is None or without not in text):
                return text.splitlines()
            self.read(until)

    def wait_end(self, code: int) -> str:
        """Wait until it has ended; give what it complains of."""
        self.wait_given_back()
        assert self.process.wait(DEADLINE) == code
        assert termios.tcgetattr(self.terminal) == self.modes
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def wait_given_back(self) -> None:
        until = time.monotonic() + DEADLINE
        while not all(one in self.seen for one in ENDS):
            self.read(until)

    def read(self, until: float) -> None:
        ready, _, _ = select.select([self.terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, (self.lines, self.seen, self.process.poll())
        self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        _, *parts = MOVE.split(self.seen)
        for number, text in zip(parts[::2], parts[1::2], strict=True):
            line = LOOKS.sub("", text)
            if len(line) >= self.width:  # it is complete
                self.lines[int(number)] = line.rstrip()
        *_, last = [0, *(found.start() for found in MOVE.finditer(self.seen))]
        self.seen = self.seen[last:]  # that line may go on

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self.theirs)
        os.close(self.terminal)


SIZES = frozenset({"COLUMNS", "LINES", "NO_COLOR"})


@pytest.fixture
def screen(api: Served) -> Iterator[Screen]:
    show(api)
    screen = Screen(80, 24)
    yield screen
    screen.close()


def test_on_a_terminal_keys_change_what_is_shown_until_it_is_interrupted(
    api: Served, screen: Screen
) -> None:
    lines = screen.wait("globex", "q quit")
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines if line.startswith(("acme", "globex", "init"))] == [
        ["acme", "active"], ["globex", "stuck"], ["initech", "active"],
    ]  # fmt: skip
    screen.press("p")
    lines = screen.wait("by messages pending")
    assert next(line for line in lines if line.startswith(("acme", "globex"))).startswith("globex")
    screen.press("/ini\r")
    screen.wait("1-1 of 1 with 'ini' of 3", without="globex  ")
    screen.press("\x1b")
    screen.wait("1-3 of 3", "globex")
    screen.resize(60, 20)
    screen.process.send_signal(signal.SIGWINCH)
    screen.wait("r reverse", without="d dead")
    control = api.world.control
    acme = replace(control.system.tenants["acme"], pending=123_456)
    control.system = replace(
        control.system, tenants={**control.system.tenants, "acme": acme}, ready=False,
        reasons=("the broker is away",),
    )  # fmt: skip
    screen.wait("123,456", "not ready: the broker is away")
    api.api.stop()
    screen.wait("as it was: no daemon answers")
    screen.process.send_signal(signal.SIGINT)
    assert screen.wait_end(0) == ""


def test_it_stops_and_goes_on_and_quits_while_a_daemon_hangs(api: Served, screen: Screen) -> None:
    screen.wait("globex")
    screen.process.send_signal(signal.SIGTSTP)
    screen.wait_given_back()
    _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert termios.tcgetattr(screen.terminal) == screen.modes
    screen.seen = ""
    screen.lines.clear()
    screen.process.send_signal(signal.SIGCONT)
    screen.wait("globex")
    asked, answered = threading.Event(), threading.Event()
    whole = api.world.control.system

    def hang() -> SystemStatus:
        asked.set()
        answered.wait(DEADLINE)
        return whole

    api.world.control.status = hang  # type: ignore[method-assign]
    try:
        assert asked.wait(DEADLINE)
        screen.press("n")
        screen.wait("n tenants")
        screen.press("q")
        assert screen.wait_end(0) == ""
    finally:
        answered.set()


def test_a_terminal_is_given_back_on_sigterm(screen: Screen) -> None:
    screen.wait("globex")
    screen.process.send_signal(signal.SIGTERM)
    assert screen.wait_end(128 + signal.SIGTERM) == ""


def test_calls_that_are_given_up_fail_at_once() -> None:
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as deaf:
        path = directory / "control.sock"
        deaf.bind(str(path))
        deaf.listen()
        with ControlClient(path, timeout=10 * DEADLINE) as client, ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.call, "GET", "/status")
            with deaf.accept()[0] as taken:
                assert taken.recv(4096)
                client.abort()
                with pytest.raises(DaemonUnreachableError):
                    call.result(DEADLINE)
            with pytest.raises(DaemonUnreachableError):
                client.call("GET", "/status")
