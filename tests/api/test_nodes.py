"""Nodes over HTTP: listed, emptied, wished for; and requests that another node answers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tenantry.api import handing_on
from tenantry.api.peers import Peers
from tenantry.control.port import ControlUnavailableError, ElsewhereError
from tenantry.domain.tenant import Lifecycle
from tenantry.http.middleware import StartingApp
from tenantry.http.server import ApiServer
from tenantry.http.tokens import Tokens
from tenantry.nodes.joining import this_machine
from tenantry.nodes.port import Introduction, NodeState, Owned
from tests.api.cluster import FakeCluster
from tests.api.serving import SECRET, Served, World, serving, short_directory
from tests.waiting import DEADLINE

TOKENS = Tokens(SECRET)


def bearer(tenant_id: str | None = None) -> dict[str, str]:
    token = TOKENS.issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id
    )
    return {"Authorization": f"Bearer {token}"}


def caller(**said: Any) -> dict[str, str]:
    full = {
        "name": "ann", "scope": "admin", "tenant_id": None, "anonymous": False, "issued_at": None,
        "client": "/ann",
    }  # fmt: skip
    text = json.dumps({**full, **said}).encode()
    return {"Tenantry-Caller": base64.urlsafe_b64encode(text).decode()}


@dataclass(frozen=True, slots=True)
class Two:
    """Two nodes that are served: `one` is asked, `two` has the tenant `acme`."""

    one: Served
    two: Served
    cluster: FakeCluster
    ways: dict[str, Introduction]


@contextmanager
def two_nodes(*, by_socket: bool = True, **options: Any) -> Iterator[Two]:
    ways: dict[str, Introduction] = {}
    there = Peers("two", ways.get, tokens=lambda: TOKENS)
    with serving(World(jwt_secret=SECRET, peers=there, **options)) as two:
        two.world.cluster.name = "two"
        two.world.create("acme", topics=("logs",))
        peers = Peers("one", ways.get, tokens=lambda: TOKENS)
        with serving(World(jwt_secret=SECRET, peers=peers, **options)) as one:
            cluster = one.world.cluster
            cluster.states["two"] = NodeState.ACTIVE
            cluster.elsewhere["acme"] = Owned(tenant_id="acme", node="two", epoch=7)
            one.world.create("here")
            ways["two"] = Introduction(
                name="two",
                version="0.1.0",
                weight=1.0,
                machine=this_machine() if by_socket else "another",
                socket=str(two.path),
                address=two.url,
            )
            yield Two(one, two, cluster, ways)


@pytest.fixture(scope="module")
def shared() -> Iterator[Two]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def nodes(shared: Two) -> Two:
    shared.two.world.control.error = None
    shared.cluster.asked = 0
    return shared


@pytest.fixture
def alone() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme")
        yield served


def test_nodes_are_listed_with_who_runs_them(alone: Served) -> None:
    (shown,) = alone.control.get("/nodes").json()["data"]
    assert (shown["name"], shown["state"], shown["tenants"]) == ("one", "active", 0)
    assert (shown["host"], shown["pid"]) == ("host-one", 4711)
    heard = datetime.fromisoformat(shown["last_heartbeat"])
    assert timedelta() < datetime.now(UTC) - heard < timedelta(seconds=DEADLINE)


def test_a_node_is_drained_and_has_tenants_again_but_not_the_last_one(alone: Served) -> None:
    last = alone.control.post("/nodes/one/drain")
    assert (last.status_code, last.json()["type"]) == (
        409,
        "urn:problem-type:tenantry:node-refused",
    )
    assert "no other node" in last.json()["detail"]
    alone.world.cluster.states["two"] = NodeState.ACTIVE
    for _ in range(2):
        drained = alone.control.post("/nodes/one/drain")
        assert (drained.status_code, drained.json()["state"]) == (200, "draining")
    for _ in range(2):
        assert alone.control.post("/nodes/one/undrain").json()["state"] == "active"
    for act in ("drain", "undrain"):
        assert alone.control.post(f"/nodes/three/{act}").status_code == 404
    asked = asked_of(alone, "/events?limit=500")
    assert asked == [
        ("NodeDrainRequested", {"node": "one"}), ("NodeDrainRequested", {"node": "one"}),
        ("NodeDrainRevoked", {"node": "one"}), ("NodeDrainRevoked", {"node": "one"}),
    ]  # fmt: skip


def asked_of(served: Served, path: str) -> list[tuple[str, dict[str, Any]]]:
    """Give what the journal has of moves and drains that were asked for; each names who asked."""
    found = [one for one in served.control.get(path).json()["data"] if "Re" in one["type"]]
    assert all(one["actor"].startswith("uid=") for one in found), found
    return [(one["type"], one["data"]) for one in found if one["type"] != "WorkersResized"]


def test_a_move_that_is_refused_leaves_the_wish_as_it_was(alone: Served) -> None:
    cluster = alone.world.cluster
    cluster.states |= {"two": NodeState.DRAINING, "three": NodeState.LOST}
    for tenant, node, status in (
        ("nobody", "one", 404), ("acme", "four", 404), ("acme", "two", 409), ("acme", "three", 409),
    ):  # fmt: skip
        answer = alone.control.post(f"/tenants/{tenant}/move", json={"node": node})
        assert answer.status_code == status, answer.text
    assert alone.control.post("/tenants/acme/move", json={}).status_code == 422
    assert cluster.wanted == {}
    there = alone.control.post("/tenants/acme/move", json={"node": "one"}).json()
    assert (there["node"], there["epoch"]) == ("one", 1)
    assert alone.control.post("/tenants/acme/move", json={"node": None}).status_code == 200
    assert cluster.wanted == {"acme": None}
    assert asked_of(alone, "/tenants/acme/events") == [
        ("TenantMoveRequested", {"tenant_id": "acme", "node": "one"}),
        ("TenantMoveRequested", {"tenant_id": "acme", "node": ""}),
    ]


def test_a_move_that_takes_too_long_is_a_504(alone: Served) -> None:
    alone.app.state.services.command_timeout = 0.3
    alone.world.cluster.states["two"] = NodeState.ACTIVE
    answer = alone.control.post("/tenants/acme/move", json={"node": "two"})
    assert answer.status_code == 504
    assert alone.world.cluster.wanted == {"acme": "two"}


def test_a_tenant_of_this_node_costs_no_question(nodes: Two) -> None:
    for method, path in (("GET", "/tenants/here"), ("POST", "/tenants/here/pause")):
        answer = nodes.one.control.request(method, path)
        assert (answer.status_code, answer.json()["node"], answer.json()["epoch"]) == (
            200,
            "one",
            1,
        )
    assert nodes.cluster.asked == 0


def test_a_command_is_carried_out_by_its_node_in_the_name_of_who_called(nodes: Two) -> None:
    headers = {**bearer(), "X-Request-ID": "a-request"}
    answer = nodes.one.tcp.post("/tenants/acme/credentials/rotate", headers=headers)
    assert answer.status_code == 200
    assert answer.json()["node"] == "two"
    assert answer.json()["credentials"]["password"] == "shown once"
    assert answer.headers["x-request-id"] == "a-request"
    said = nodes.two.world.control.metadata[-1]
    assert (said.actor, said.correlation_id) == ("ann", "a-request")
    nodes.one.control.post("/tenants/acme/credentials/rotate")
    assert nodes.two.world.control.metadata[-1].actor.startswith("uid=")
    refused = nodes.one.control.put("/tenants/acme/config/concurrency", json={"workers": 99})
    direct = nodes.two.control.put("/tenants/acme/config/concurrency", json={"workers": 99})
    assert refused.status_code == direct.status_code == 422
    assert refused.json()["errors"] == direct.json()["errors"]


def test_what_the_database_tells_is_told_here(nodes: Two) -> None:
    for path in ("/tenants/acme/events", "/tenants/acme?at=1", "/tenants/acme/dead-letters"):
        assert nodes.one.control.get(path).status_code == 404  # this world's database is another
        assert nodes.two.control.get(path).status_code == 200


def test_a_tenants_token_is_no_admins_on_the_other_node(nodes: Two) -> None:
    nodes.two.world.control.trouble["acme"] = "what others' queues are called"
    try:
        own = nodes.one.tcp.get("/tenants/acme", headers=bearer("acme"))
        assert own.status_code == 200
        assert "others" not in own.json()["trouble"]
        assert "others" in nodes.one.tcp.get("/tenants/acme", headers=bearer()).json()["trouble"]
    finally:
        nodes.two.world.control.trouble.clear()
    for headers, status in ((bearer("here"), 403), (bearer("acme"), 403), ({}, 401)):
        forged = nodes.one.tcp.post("/tenants/acme/pause", headers={**caller(), **headers})
        assert forged.status_code == status


def test_who_calls_is_believed_on_the_control_socket_alone_and_held_to_the_rules(
    nodes: Two,
) -> None:
    own = caller(name="t", scope="tenant", tenant_id="acme", client="acme/")
    assert nodes.two.control.get("/tenants/acme", headers=own).status_code == 200
    for method, path in (
        ("POST", "/tenants/acme/pause"), ("GET", "/tenants/here"), ("GET", "/nodes"),
        ("GET", "/messages?tenant_id=here"), ("POST", "/runtime"),
    ):  # fmt: skip
        assert nodes.two.control.request(method, path, headers=own).status_code == 403, path
    for bad in (
        {"Tenantry-Caller": "?"}, {"Tenantry-Caller": "W10="}, caller(scope="root"),
        caller(scope="tenant"), caller(tenant_id="acme"), caller(scope="tenant", tenant_id=1),
    ):  # fmt: skip
        assert nodes.two.control.get("/nodes", headers=bad).status_code == 400
    twice = [*caller().items(), *caller().items()]
    assert nodes.two.control.get("/nodes", headers=twice).status_code == 403
    assert nodes.two.tcp.get("/nodes", headers=caller()).status_code == 401


def test_what_was_handed_on_is_not_handed_on_again(nodes: Two) -> None:
    for path in ("/tenants/acme", "/tenants/acme/audit"):
        answer = nodes.one.control.get(path, headers={"Tenantry-Handed-On": "two"})
        assert (answer.status_code, answer.headers["tenantry-elsewhere"]) == (503, "two")
    marked = nodes.one.control.get("/tenants/here", headers={"Tenantry-Handed-On": "two"})
    assert marked.status_code == 200


def test_what_comes_to_a_shared_address_is_passed_to_the_node_it_is_meant_for(nodes: Two) -> None:
    marks = {"Tenantry-Handed-On": "three", "Tenantry-For": "two"}
    answer = nodes.one.tcp.post("/tenants/acme/pause", headers=bearer() | marks)
    assert (answer.status_code, answer.json()["node"]) == (200, "two")
    assert nodes.two.world.control.metadata[-1].actor == "ann"
    asked = nodes.one.tcp.post("/runtime", json={"tenants": ["acme"]}, headers=bearer() | marks)
    assert asked.json()["data"].keys() == {"acme"}
    for headers, status in ((bearer("here"), 403), (bearer("acme"), 403), ({}, 401)):
        answer = nodes.one.tcp.post("/tenants/acme/pause", headers=headers | marks)
        assert answer.status_code == status
    assert nodes.one.tcp.get("/tenants/acme", headers=bearer("acme") | marks).status_code == 200
    # By a control socket it has come to the very node, and nowhere is another.
    for other in (marks, marks | {"Tenantry-For": "four"}):
        answer = nodes.one.control.post("/tenants/acme/pause", headers=other)
        assert (answer.status_code, "tenantry-elsewhere" in answer.headers) == (503, True)
    without = {"Tenantry-For": "two"}
    assert nodes.one.control.get("/tenants/here", headers=without).json()["node"] == "one"


def test_a_tenant_on_its_way_is_waited_for(nodes: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    control = nodes.two.world.control
    whole, refused = control.execute, 0

    def execute(*args: Any, **kwargs: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused < 3:
            raise ElsewhereError("it is on its way")
        return whole(*args, **kwargs)

    monkeypatch.setattr(control, "execute", execute)
    assert nodes.one.control.post("/tenants/acme/pause").status_code == 200
    assert refused == 3
    monkeypatch.setattr(handing_on, "PATIENCE", 0.2)
    control.error = ElsewhereError("it is on its way")
    answer = nodes.one.control.post("/tenants/acme/resume")
    assert (answer.status_code, "two" in answer.json()["detail"]) == (503, True)
    direct = nodes.two.control.post("/tenants/acme/resume", headers={"Tenantry-Handed-On": "one"})
    assert "tenantry-elsewhere" in direct.headers


@pytest.mark.parametrize("stood_by", [False, True])
def test_a_node_that_is_about_to_begin_is_waited_for(
    nodes: Two, monkeypatch: pytest.MonkeyPatch, *, stood_by: bool
) -> None:
    beginning, asked = StartingApp(), 0
    if stood_by:
        # It has joined the others, and serves what it served as none of them.
        standby = World(jwt_secret=SECRET)
        standby.create("acme")
        standby.control.error = ControlUnavailableError("this daemon is a standby")
        beginning.open(standby.app())

    async def begins_once_asked(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await beginning(scope, receive, send)
        beginning.open(nodes.two.app)

    with short_directory() as directory:
        path = directory / "control.sock"
        server = ApiServer(begins_once_asked, socket_path=path)
        server.bind()
        serves = threading.Thread(target=server.run)
        serves.start()
        try:
            there = replace(nodes.ways["two"], socket=str(path))
            monkeypatch.setitem(nodes.ways, "two", there)
            assert nodes.one.control.post("/tenants/acme/pause").status_code == 200
            assert asked == 2
        finally:
            assert server.stop()
            serves.join(DEADLINE)


def test_where_there_is_no_other_node_nothing_is_waited_for(alone: Served) -> None:
    alone.world.control.error = ElsewhereError("the daemon is starting")
    answer = alone.control.post("/tenants/acme/pause")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the daemon is starting")


def test_a_tenant_is_made_where_it_belongs(nodes: Two) -> None:
    nodes.cluster.elsewhere["new"] = Owned(tenant_id="new", node="two", epoch=1)
    made = nodes.one.control.post("/tenants", json={"name": "x", "id": "new"})
    assert (made.status_code, made.json()["node"]) == (201, "two")
    assert made.headers["location"] == "/tenants/new"
    assert nodes.two.world.directory.get("new") is not None
    headers = {"Idempotency-Key": "a-key"}
    ids = {
        nodes.one.control.post("/tenants", json={"name": "x"}, headers=headers).json()["id"]
        for _ in range(2)
    }
    assert len(ids) == 1
    for bad in (b"[", b"[]", b'{"name": 1}', b'{"id": "UPPER", "name": "x"}', b'{"id": 3}'):
        answer = nodes.one.control.post(
            "/tenants", content=bad, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in {400, 422}, bad


def test_a_page_asks_each_node_once_and_says_who_is_silent(nodes: Two) -> None:
    nodes.one.world.create("acme")  # in the database that both would have
    page = nodes.one.control.get("/tenants").json()
    shown = {one["id"]: one for one in page["data"]}
    assert page["silent_nodes"] == []
    assert (shown["acme"]["node"], shown["acme"]["epoch"]) == ("two", 7)
    assert shown["acme"]["workers_current"] == 3
    assert nodes.cluster.asked == 1
    way = nodes.ways.pop("two")
    try:
        page = nodes.one.control.get("/tenants").json()
    finally:
        nodes.ways["two"] = way
    shown = {one["id"]: one for one in page["data"]}
    assert page["silent_nodes"] == ["two"]
    assert (shown["acme"]["workers_current"], shown["here"]["workers_current"]) == (None, 3)


def test_a_node_that_cannot_be_reached_is_named_with_its_address(
    nodes: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing_on, "UNREACHABLE_PATIENCE", 0.2)
    way = nodes.ways["two"]
    nodes.ways["two"] = Introduction(
        name="two", version="", weight=1.0, machine=way.machine, socket="/nowhere.sock", address=""
    )
    try:
        answer = nodes.one.control.post("/tenants/acme/pause")
    finally:
        nodes.ways["two"] = way
    assert answer.status_code == 503
    assert "node two can't be reached at /nowhere.sock" in answer.json()["detail"]


def test_another_nodes_status_is_shown(nodes: Two) -> None:
    assert nodes.one.control.get("/status?node=two").status_code == 200
    assert nodes.one.control.get("/status?node=three").status_code == 404
    assert nodes.one.tcp.get("/status?node=two", headers=bearer("acme")).status_code == 403


def test_on_another_machine_a_caller_comes_with_a_token() -> None:
    with two_nodes(by_socket=False) as nodes:
        own = nodes.one.tcp.get("/tenants/acme", headers=bearer("acme"))
        assert own.status_code == 200
        assert nodes.one.tcp.post("/tenants/acme/pause", headers=bearer()).status_code == 200
        assert nodes.two.world.control.metadata[-1].actor == "ann"
        # On the control socket nobody has a token; what is said to be one there counts for nothing.
        answer = nodes.one.control.post("/tenants/acme/resume", headers=bearer("acme"))
        assert answer.status_code == 200, answer.text
        assert nodes.two.world.control.metadata[-1].actor.startswith("uid=")
        page = nodes.one.control.get("/tenants").json()
        assert page["silent_nodes"] == []


def test_an_answer_without_an_end_comes_as_it_is_made(nodes: Two) -> None:
    with httpx.stream(
        "GET",
        f"{nodes.one.url}/messages/stream?tenant_id=acme",
        headers=bearer("acme"),
        timeout=DEADLINE,
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert next(stream.iter_lines()) == "retry: 1000"


def test_an_answer_without_an_end_ends_when_its_token_is_taken_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handing_on, "LOOK_AT_TOKEN_SECONDS", 0.01)
    with two_nodes() as nodes:
        url = f"{nodes.one.url}/messages/stream?tenant_id=acme"
        with httpx.stream("GET", url, headers=bearer("acme"), timeout=DEADLINE) as stream:
            parts = stream.iter_bytes()
            assert next(parts).startswith(b"retry: 1000")
            nodes.one.world.identity.trust(["another secret, which has signed nothing"])
            assert list(parts) == []


@pytest.fixture(scope="module")
def working() -> Iterator[Two]:
    """Two nodes whose tenants do something."""
    with two_nodes() as nodes:
        nodes.one.world.create("acme")
        nodes.one.world.control.pending["here"] = 3
        nodes.two.world.control.pending["acme"] = 7
        _work(nodes.one, "here", rate=1.5, lifecycle=Lifecycle.ACTIVE, parked="too often")
        _work(nodes.two, "acme", rate=2.0, lifecycle=Lifecycle.PAUSED)
        yield nodes


def _work(served: Served, tenant_id: str, **figures: Any) -> None:
    control = served.world.control
    runtime = control.runtime(tenant_id)
    assert runtime is not None
    tenants = {tenant_id: replace(runtime, **figures)}
    control.system = replace(control.system, tenants=tenants)


def test_the_overview_adds_up_what_all_nodes_tell(working: Two) -> None:
    for client in (working.one.control, working.one.tcp):
        told = client.get("/overview", headers=bearer()).json()
        assert (told["tenants"], told["rate"], told["pending"]) == (2, 3.5, 10)
        assert told["states"] == {"active": 1, "paused": 1}
        assert (told["troubled"], told["dead_letters"], told["silent_nodes"]) == (1, 0, [])


def test_the_overview_names_nodes_that_do_not_answer(working: Two) -> None:
    there = working.ways.pop("two")
    told = working.one.control.get("/overview").json()
    working.ways["two"] = there
    assert (told["tenants"], told["pending"], told["silent_nodes"]) == (1, 3, ["two"])


def test_the_overview_does_not_ask_for_the_tree_of_all_tenants_actors(
    working: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(working.one.world.control), "status")
    told = working.one.control.get("/overview")
    assert (told.status_code, told.json()["tenants"]) == (200, 2)


def test_tenants_are_sorted_by_what_they_do_on_other_nodes(working: Two) -> None:
    def listed(sort: str) -> list[str]:
        answer = working.one.control.get("/tenants", params={"sort": sort})
        return [one["id"] for one in answer.json()["data"]]

    assert listed("-pending") == ["acme", "here"]
    assert listed("pending") == ["here", "acme"]
