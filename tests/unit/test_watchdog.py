"""Signs of life to systemd: given while all goes on, withheld when something hangs."""

from __future__ import annotations

import os
import threading

import pytest

from tenantry.loops import Heartbeat
from tenantry.process.service_manager import PATIENCE, Notifier, Watchdog
from tests.waiting import DEADLINE, eventually


class Heard(Notifier):
    def __init__(self) -> None:
        super().__init__({})
        self.states: list[str] = []

    def notify(self, *states: str) -> None:
        self.states += states


class Tree:
    """What hangs, as the watch would tell, and how often it was asked."""

    def __init__(self) -> None:
        self.hangs: tuple[str, ...] = ()
        self.asked = 0

    def liveness(self) -> tuple[str, ...]:
        self.asked += 1
        return self.hangs

    def wait_asked(self) -> None:
        until = self.asked + 3
        eventually(lambda: self.asked >= until)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def beating(heard: Heard, tree: Tree, main: Heartbeat) -> tuple[Watchdog, threading.Thread]:
    watchdog = Watchdog(heard, every=0.001, liveness=tree.liveness, main=main)
    thread = threading.Thread(target=watchdog.run)
    thread.start()
    return watchdog, thread


def test_beats_go_on_while_the_tree_lives_and_stop_while_it_hangs(heard: Heard) -> None:
    tree = Tree()
    watchdog, thread = beating(heard, tree, Heartbeat())
    eventually(lambda: len(heard.states) > 3)
    tree.hangs = ("the supervisor has hung for 61 s",)
    tree.wait_asked()
    silent_since = len(heard.states)
    tree.wait_asked()
    assert len(heard.states) == silent_since
    tree.hangs = ()
    eventually(lambda: len(heard.states) > silent_since)
    watchdog.stop()
    thread.join(DEADLINE)
    assert set(heard.states) == {"WATCHDOG=1"}


def test_a_main_thread_that_hangs_is_no_life(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, main = Tree(), Heartbeat()
    main.beat(patience=-PATIENCE)
    monkeypatch.setattr("tenantry.process.service_manager.PATIENCE", 0)
    watchdog, thread = beating(heard, tree, main)
    tree.wait_asked()
    assert heard.states == []
    main.rest()
    eventually(lambda: heard.states)
    watchdog.stop()
    thread.join(DEADLINE)


OWN = "the number of the process"


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": OWN}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_beats_come_as_often_as_systemd_wants_them(
    environ: dict[str, str], every: float | None
) -> None:
    if environ.get("WATCHDOG_PID") == OWN:
        environ = {**environ, "WATCHDOG_PID": str(os.getpid())}
    assert Notifier({"NOTIFY_SOCKET": "/run/nothing", **environ}).beat_every == every
    assert Notifier(environ).beat_every is None
