"""`tenantry nodes` and `tenantry tenant move`, against a real API over nodes in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
import pytest

from tenantry.cli import nodes
from tenantry.cli.options import complete_node
from tenantry.nodes.port import NodeState, Owned
from tests.api.serving import Served

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "POLL", 0.01)


@pytest.fixture
def two(api: Served) -> Served:
    api.world.cluster.states["two"] = NodeState.ACTIVE
    return api


def data(run: Run, *arguments: str) -> Any:
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_nodes_are_listed_as_a_table_and_as_json(two: Served, run: Run) -> None:
    two.world.cluster.left = [41]
    code, out, err = run("nodes")
    assert (code, err) == (0, "")
    heading, first, second = out.splitlines()
    assert heading.split()[:4] == ["NAME", "STATE", "TENANTS", "RATE/S"]
    assert (first.split()[:3], second.split()[0]) == (["one", "active", "41"], "two")
    assert [one["host"] for one in data(run, "nodes")] == ["host-one", "host-two"]


def test_a_drain_tells_how_many_are_left_and_ends_when_none_is(two: Served, run: Run) -> None:
    two.world.cluster.left = [41, 41, 1, 0]
    code, out, err = run("nodes", "drain", "two")
    assert code == 0
    assert [line.split(" left")[0] for line in err.splitlines()] == ["41 tenants", "1 tenant"]
    assert "draining" in out
    assert data(run, "nodes", "undrain", "two")["state"] == "active"


def test_a_drain_is_waited_for_so_long_or_not_at_all(two: Served, run: Run) -> None:
    two.world.cluster.left = [2]
    code, _, err = run("nodes", "drain", "two", "--timeout", "0.1")
    assert code == 1
    assert "node two is not empty after 0.1 s: 2 tenants left" in err
    assert data(run, "nodes", "drain", "two", "--no-wait")["tenants"] == 2


def test_a_drain_that_is_taken_back_meanwhile_is_not_waited_for(two: Served, run: Run) -> None:
    cluster = two.world.cluster
    cluster.left = [2]
    listed = cluster.listed

    def taken_back() -> Any:
        found = listed()
        cluster.states["two"] = NodeState.ACTIVE
        return found

    cluster.listed = taken_back  # type: ignore[method-assign]
    code, _, err = run("nodes", "drain", "two")
    assert (code, "node two is active, with 2 tenants left" in err) == (1, True)


def test_what_can_not_be_drained_is_refused_in_a_line(api: Served, run: Run) -> None:
    code, _, err = run("nodes", "drain", "one")
    assert (code, "no other node is active" in err) == (1, True)
    code, _, err = run("nodes", "undrain", "three")
    assert (code, "there is no node 'three'" in err) == (1, True)


def test_a_tenant_is_moved_to_a_node_or_anywhere(two: Served, run: Run) -> None:
    two.world.create("acme")
    assert data(run, "tenant", "move", "acme", "--to", "one")["node"] == "one"
    assert two.world.cluster.wanted == {"acme": "one"}
    code, out, _ = run("tenant", "move", "acme", "--anywhere")
    assert code == 0
    assert "epoch" in out
    assert two.world.cluster.wanted == {"acme": None}
    for wrong in ((), ("--to", ""), ("--to", "one", "--anywhere")):
        assert run("tenant", "move", "acme", *wrong)[0] == 2
    assert run("tenant", "move", "acme", "--to", "three")[0] == 1


def test_a_shell_completes_nodes_from_the_daemon(
    two: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, parameter = click.Context(click.Command("drain")), click.Argument(["node"])
    assert [one.value for one in complete_node(context, parameter, "t")] == ["two"]
    monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", "/tmp/there-is-no-daemon.sock")
    assert complete_node(context, parameter, "t") == []


def test_a_list_says_whose_tenants_are_not_known(two: Served, run: Run) -> None:
    two.world.create("acme")
    two.world.cluster.elsewhere["acme"] = Owned(tenant_id="acme", node="two", epoch=2)
    code, out, err = run("tenant", "list")
    assert (code, "two" in out) == (0, True)
    assert "What runs is not known of tenants on: two" in err
