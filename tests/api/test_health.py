"""Health asks the tree of actors: in memory first, then a real tree with actors that hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest

from tenantry.actors.messages import Execute
from tenantry.actors.supervision import tell
from tenantry.api.health import Health
from tenantry.control.port import ActorStatus, Outcome, SystemState
from tenantry.journal.port import Metadata
from tests.api.serving import Served, World, serving
from tests.fakes.actors import Tree, running_tree
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        yield served


def test_a_supervisor_that_does_not_answer_for_long_is_not_healthy(api: Served) -> None:
    health: Health = api.app.state.services.health
    health._patience, health._deaf = 0.01, DEADLINE
    api.world.control.deaf = True
    assert api.control.get("/healthz").status_code == 200  # busy, so far
    health._deaf = 0.0
    problem = eventually(
        lambda: (answer := api.control.get("/healthz")).status_code == 503 and answer.json()
    )
    assert "supervisor has not answered for" in problem["detail"]
    assert api.world.control.pings == 1  # one ping on its way, however many ask


def test_a_supervisor_that_answers_late_is_healthy_again(api: Served) -> None:
    health: Health = api.app.state.services.health
    health._patience, health._deaf = 0.01, 0.0
    late: Future[None] = Future()
    api.world.control.ping = lambda: late  # type: ignore[method-assign]
    assert api.control.get("/healthz").status_code == 503
    late.set_result(None)
    del api.world.control.ping
    assert api.control.get("/healthz").status_code == 200


def test_a_stuck_actor_anywhere_is_named(api: Served) -> None:
    control = api.world.control
    worker = ActorStatus(name="worker-1", kind="Worker", state="stuck", mailbox=9, restarts=0)
    tenant = ActorStatus(
        name="acme", kind="Tenant", state="active", mailbox=0, restarts=0, children=(worker,)
    )
    control.system = replace(control.system, tree=replace(control.system.tree, children=(tenant,)))
    answer = api.tcp.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "supervisor/acme/worker-1 is stuck"
    control.system = replace(control.system, state=SystemState.STOPPING)
    assert api.tcp.get("/healthz").status_code == 200


@pytest.fixture
def tree() -> Iterator[Tree]:
    with running_tree() as tree:
        yield tree


@pytest.fixture
def real(tree: Tree) -> Iterator[Served]:
    with serving(World(control=tree.control)) as served:
        yield served


class Hanging:
    """A command that keeps whoever looks at it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    @property
    def tenant_id(self) -> str:
        self.entered.set()
        assert self.released.wait(DEADLINE)
        return "nobody"


def test_a_hanging_supervisor_shows_and_recovers(tree: Tree, real: Served) -> None:
    health: Health = real.app.state.services.health
    health._patience, health._deaf = 0.05, DEADLINE
    assert real.control.get("/healthz").status_code == 200
    health._deaf = 0.2
    hanging, reply = Hanging(), Future[Outcome]()
    command = Execute(command=hanging, metadata=Metadata(actor="test"), reply=reply)  # type: ignore[arg-type]
    assert tell(tree.supervisor, command)
    assert hanging.entered.wait(DEADLINE)
    eventually(lambda: real.control.get("/healthz").status_code == 503)
    # It says so while the supervisor hangs, and does not wait for it to answer.
    assert real.control.get("/healthz").status_code == 503
    hanging.released.set()
    eventually(lambda: real.control.get("/healthz").status_code == 200)


def test_what_the_daemon_cannot_go_on_without_is_named(api: Served) -> None:
    api.world.control.ailments = ("the thread clock has ended",)
    answer = api.tcp.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == "the thread clock has ended"


def test_a_hanging_supervisor_is_named_with_where_it_hangs(tree: Tree, real: Served) -> None:
    hanging = Hanging()
    command = Execute(command=hanging, metadata=Metadata(actor="test"), reply=Future[Outcome]())  # type: ignore[arg-type]
    assert tell(tree.supervisor, command)
    assert hanging.entered.wait(DEADLINE)
    tree.pass_time(61)
    detail = eventually(
        lambda: (
            (answer := real.control.get("/healthz")).status_code == 503 and answer.json()["detail"]
        )
    )
    assert "the supervisor has hung for" in detail
    assert "in tenant_id" in detail
    hanging.released.set()
    eventually(lambda: real.control.get("/healthz").status_code == 200)


def test_a_dead_supervisor_shows(tree: Tree, real: Served) -> None:
    assert tell(tree.supervisor, "nothing a supervisor knows")
    eventually(lambda: tree.crashes)
    assert real.control.get("/healthz").status_code == 503
