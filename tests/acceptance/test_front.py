"""The front as a process: it may die, and it dies with its daemon."""

from __future__ import annotations

import os
import signal
from functools import partial

import httpx
import psutil
import pytest

from tests import preloaded
from tests.acceptance.program import LOOK, Program
from tests.ports import free_port
from tests.waiting import DEADLINE, eventually


def front_of(program: Program) -> int | None:
    """Find the process that serves TCP."""
    children = psutil.Process(program.process.pid).children()
    found = [child.pid for child in children if "tenantry.front" in child.cmdline()]
    return found[0] if found else None


def test_it_reads_and_publishes_by_itself_while_the_daemon_stands_still(program: Program) -> None:
    port = free_port()
    program.start(TENANTRY_SERVER_PORT=str(port))
    tenant = program.create(topics=["logs"])
    base = f"http://127.0.0.1:{port}"
    page = f"{base}/messages?tenant_id={tenant.id}"
    path = f"{base}/tenants/{tenant.id}/messages"
    message = {"payload": {"n": 1}, "topic": "logs"}
    # Until the front has its own connections it hands requests on; both ways answer the same.
    ids = httpx.post(path, json=message, trust_env=False, timeout=DEADLINE).json()["ids"]
    found = eventually(lambda: httpx.get(page, trust_env=False, timeout=DEADLINE).json()["data"])
    assert [one["id"] for one in found] == ids

    def by_itself() -> bool:
        program.send(signal.SIGSTOP)
        try:
            with httpx.Client(trust_env=False, timeout=LOOK) as client:
                read = client.get(page)
                taken = client.post(path, json=message)
        except httpx.TimeoutException:
            return False
        finally:
            program.process.send_signal(signal.SIGCONT)
        return (read.status_code, taken.status_code) == (200, 202)

    eventually(by_itself, what="answers without the daemon")
    eventually(lambda: len(httpx.get(page, trust_env=False, timeout=DEADLINE).json()["data"]) >= 2)


@pytest.mark.own_interpreter
def test_when_it_dies_another_takes_over_and_with_its_daemon_it_leaves_the_port_to_the_next(
    program: Program,
) -> None:
    port = free_port()
    program.start(TENANTRY_SERVER_PORT=str(port))
    health = f"http://127.0.0.1:{port}/healthz"
    assert httpx.get(health, trust_env=False, timeout=DEADLINE).status_code == 200
    first = eventually(lambda: front_of(program))
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # The request waits in the queue of the listening socket, which the daemon owns.
    assert httpx.get(health, trust_env=False, timeout=DEADLINE).status_code == 200
    second = front_of(program)
    assert second is not None
    assert second != first
    assert program.wait_logged("front.ended")
    program.kill()
    eventually(partial(_is_dead, second))
    program.own_interpreter = not preloaded.available()  # the next daemon may be preloaded again
    program.start(TENANTRY_SERVER_PORT=str(port))
    assert program.stop() == 0


def _is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
