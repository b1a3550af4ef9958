"""The notify protocol; the test plays systemd."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.program import Program
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

WATCHDOG_SECONDS = 1.5


class Manager:
    """The end of the notify socket that systemd has."""

    def __init__(self, program: Program) -> None:
        self.path = program.directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.heard: list[dict[str, str]] = []
        program.settings["NOTIFY_SOCKET"] = str(self.path)
        program.settings["WATCHDOG_USEC"] = str(int(WATCHDOG_SECONDS * 1_000_000))

    def close(self) -> None:
        self._socket.close()

    def listen(self) -> list[dict[str, str]]:
        """Return every message so far, as its assignments."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def wait_for(
        self, name: str, count: int = 1, *, timeout: float = DEADLINE
    ) -> list[dict[str, str]]:
        def told() -> list[dict[str, str]]:
            found = [one for one in self.listen() if name in one]
            return found if len(found) >= count else []

        return eventually(told, timeout=timeout, what=f"{name} {count} times")

    def silent_for(self, seconds: float) -> bool:
        """Wait for the next message; return whether none has come in time."""
        return not select.select([self._socket], [], [], seconds)[0]

    def count(self, name: str) -> int:
        return sum(name in one for one in self.listen())


@pytest.fixture
def manager(program: Program) -> Iterator[Manager]:
    made = Manager(program)
    yield made
    made.close()


def test_systemd_hears_of_the_start_of_life_while_there_is_any_and_of_the_end(
    program: Program, manager: Manager
) -> None:
    program.spawn()
    ready = manager.wait_for("READY")[0]
    assert ready == {"READY": "1", "STATUS": "consuming for 0 tenants"}
    assert program.status_of("/readyz") == 200
    freeze(program, manager)
    assert manager.wait_for("WATCHDOG", manager.count("WATCHDOG") + 3)[-1] == {"WATCHDOG": "1"}
    program.send(signal.SIGTERM)
    assert program.wait() == 0
    assert manager.wait_for("STOPPING") == [{"STOPPING": "1", "STATUS": "draining"}]
    kinds = [next(iter(one)) for one in manager.listen() if "WATCHDOG" not in one]
    assert kinds == ["READY", "STOPPING"]


def freeze(program: Program, manager: Manager) -> None:
    """Freeze the daemon, and check that it sends no watchdog message meanwhile."""
    program.send(signal.SIGSTOP)
    state = Path(f"/proc/{program.process.pid}/stat")
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", what="a stop")
    before = manager.count("WATCHDOG")
    assert manager.silent_for(WATCHDOG_SECONDS), "it beats in the time systemd loses patience in"
    program.send(signal.SIGCONT)
    manager.wait_for("WATCHDOG", before + 1)


def test_a_standby_is_ready_and_says_for_whom_it_stands_by(
    running: Program, rabbitmq: RabbitHost, database_url: str
) -> None:
    with Program(rabbitmq, database_url) as standby:
        manager = Manager(standby)
        standby.spawn(TENANTRY_NODE_STANDBY="true")
        ready = manager.wait_for("READY")[0]
        assert f"(pid {running.process.pid}) leads" in ready["STATUS"]
        manager.wait_for("WATCHDOG", 2)
        assert running.stop() == 0
        assert manager.wait_for("READY", 2)[1]["STATUS"] == "consuming for 0 tenants"
        assert standby.stop() == 0
        manager.close()


def test_a_reload_takes_what_may_change_and_a_bad_configuration_changes_nothing(
    program: Program, manager: Manager
) -> None:
    program.spawn()
    manager.wait_for("READY")
    program.config.write_text("workers = 500\n")
    program.send(signal.SIGHUP)
    failed = program.wait_logged("daemon.reload_failed")[0]
    assert failed["error"].startswith("workers: must be at most 64")
    assert str(program.config) in failed["error"]
    assert manager.wait_for("READY", 2)[1]["STATUS"] == "consuming for 0 tenants"
    assert program.create("before").shown["workers"] == 3
    program.config.write_text(
        'workers = 5\n[log]\nlevel = "debug"\n[consumer]\nbatch_size = 7\nprefetch = 900\n'
    )
    program.send(signal.SIGHUP)
    reloading = manager.wait_for("RELOADING", 2)[1]
    assert int(reloading["MONOTONIC_USEC"]) > 0
    manager.wait_for("READY", 3)
    event = program.wait_logged("daemon.reloaded")[0]
    assert set(event["changed"]) == {"workers", "log.level", "consumer.batch_size"}
    assert event["at_the_next_start"] == ["consumer.prefetch"]
    assert program.create("after").shown["workers"] == 5
    assert program.events("api.request"), "the level debug is not in force"
