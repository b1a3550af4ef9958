"""Two nodes as their users see them: both take every command, and give the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest

from tests.acceptance.program import Program
from tests.services_postgres import admin_url
from tests.services_postgres import database as fresh_database
from tests.waiting import DEADLINE, eventually

SECRET = "a secret of thirty-two bytes or more, for both nodes"


class Pair:
    """Two nodes on the embedded broker, each with tenants of its own: `left` belongs to `one`."""

    def __init__(self, one: Program, two: Program) -> None:
        self.one, self.two = one, two
        self.nodes = {"one": one, "two": two}
        self.ids: dict[str, str] = {}

    def owner(self, tenant_id: str) -> str | None:
        with psycopg.connect(self.one.database_url) as connection:
            row = connection.execute(
                "SELECT node FROM tenantry.owners WHERE tenant_id = %s", [tenant_id]
            ).fetchone()
        return None if row is None else row[0]

    def make(self, word: str, on: str, **fields: Any) -> dict[str, Any]:
        """Create a tenant through `one`, and move it to a node."""
        body = {"name": word, "id": self.one.name(word), **fields}
        made = self.one.call("POST", "/tenants", body)
        assert made.status_code == 201, made.text
        moved = self.one.call("POST", f"/tenants/{body['id']}/move", {"node": on})
        assert (moved.status_code, moved.json().get("node")) == (200, on), moved.text
        return dict(made.json())

    def token(self, *arguments: str) -> dict[str, str]:
        printed = self.one.cli("token", *arguments)
        assert printed.code == 0, printed.stderr
        return {"Authorization": f"Bearer {printed.stdout.strip()}"}

    def tcp(self, node: str) -> str:
        return f"http://127.0.0.1:{self.nodes[node].get('/info')['server']['port']}"

    def ask(
        self, node: str, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> httpx.Response:
        return httpx.request(
            method, self.tcp(node) + path, headers=headers, json=body, timeout=DEADLINE
        )


@pytest.fixture(scope="module")
def started() -> Iterator[Pair]:
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database(admin_url()))
        nodes = []
        for name in ("one", "two"):
            node = stack.enter_context(Program(None, url))
            node.settings["TENANTRY_NODE_NAME"] = name
            node.settings["TENANTRY_JWT_SECRET"] = SECRET
            nodes.append(node)
        for node in nodes:
            node.start()
        pair = Pair(*nodes)
        active = {"one": "active", "two": "active"}
        eventually(
            lambda: (
                {one["name"]: one["state"] for one in pair.one.get("/status")["nodes"]} == active
                and {one["name"]: one["state"] for one in pair.two.get("/status")["nodes"]}
                == active
            ),
            what="two nodes that know one another",
        )
        yield pair
        for node in nodes:
            node.check_no_traceback()
            assert node.stop() == 0


@pytest.fixture
def pair(started: Pair) -> Pair:
    started.one.next_test()
    return started


def test_commands_through_the_wrong_node_are_carried_out_and_answered_as_through_the_right(
    pair: Pair,
) -> None:
    made = pair.make("acme", "two", topics=["logs"])
    path = f"/tenants/{made['id']}"
    one, two = pair.one, pair.two
    shown = one.get(path)
    assert (shown["node"], shown["workers_current"]) == ("two", 3)
    assert two.get(path) == shown
    resized = one.call("PUT", f"{path}/config/concurrency", {"workers": 5})
    assert (resized.status_code, resized.json()["workers"]) == (200, 5)
    assert two.get(path)["workers_current"] == 5
    assert one.call("PUT", f"{path}/config/concurrency", {"workers": 99}).status_code == 422
    assert one.call("POST", f"{path}/pause").json()["state"] == "paused"
    assert one.call("POST", f"{path}/resume").json()["state"] == "active"
    added = one.call("POST", f"{path}/topics", {"topics": ["events"]})
    assert sorted(added.json()["topics"]) == ["events", "logs"]
    assert one.call("POST", f"{path}/credentials/rotate").json()["credentials"]["password"]
    assert one.get(f"{path}/audit")["balanced"]
    assert one.call("POST", f"{path}/messages", {"payload": 1}).status_code == 202
    eventually(lambda: len(one.get(f"/messages?tenant_id={made['id']}")["data"]) == 1, what="a row")

    def audited(node: Program) -> tuple[int, int]:
        (audit,) = [
            told for told in node.get("/audit?limit=200")["data"] if told["tenant_id"] == made["id"]
        ]
        return audit["in_flight"], audit["accepted"]

    for node in (one, two):
        eventually(lambda asked=node: audited(asked) == (0, 1), what="whichever node is asked")
    # The journal names the real callers, not the node that handed their requests on.
    actors = {event["actor"] for event in one.get(f"{path}/events?limit=100")["data"]}
    assert any(
        actor.startswith("uid=") and f"pid={one.process.pid}" not in actor for actor in actors
    )
    assert not any(f"pid={one.process.pid}" in actor for actor in actors)
    assert one.call("DELETE", path).status_code == 204
    assert one.call("GET", path).status_code == two.call("GET", path).status_code == 404
    assert one.call("POST", f"{path}/pause").status_code == 404


def test_a_tenant_is_made_on_the_node_it_belongs_to_and_once_for_a_key(pair: Pair) -> None:
    nodes = set()
    admin = pair.token("--admin")
    headers = {**admin, "Idempotency-Key": pair.one.name("key")}
    for number in range(40):  # placement follows from the id, which is generated
        made = pair.ask(
            "one", "POST", "/tenants", headers=pair.token("--admin"), body={"name": "x"}
        )
        assert made.status_code == 201, made.text
        assert made.headers["location"] == f"/tenants/{made.json()['id']}"
        nodes.add(made.json()["node"])
        assert pair.owner(made.json()["id"]) == made.json()["node"]
        pair.two.call("DELETE", made.headers["location"])
        if len(nodes) == 2 and number:
            break
    assert nodes == {"one", "two"}
    first = pair.ask("one", "POST", "/tenants", headers, {"name": "k"})
    again = pair.ask("two", "POST", "/tenants", headers, {"name": "k"})
    assert first.status_code == again.status_code == 201
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert pair.ask("two", "POST", "/tenants", headers, {"name": "z"}).status_code == 422
    taken = pair.two.call("POST", "/tenants", {"name": "k", "id": first.json()["id"]})
    assert taken.status_code == 409


def test_a_move_waits_until_the_tenant_consumes_there_and_is_in_the_journal(pair: Pair) -> None:
    made = pair.make("mover", "one")
    path = f"/tenants/{made['id']}"
    moved = pair.one.cli("tenant", "move", made["id"], "--to", "two", "--json")
    assert moved.code == 0, moved.stderr
    assert (moved.json["node"], moved.json["workers_current"]) == ("two", 3)
    assert pair.two.get("/status")["tenants"][made["id"]]["consuming"]
    assert made["id"] not in pair.one.get("/status")["tenants"]
    epoch = moved.json["epoch"]
    assert pair.two.call("POST", f"{path}/move", {"node": "two"}).json()["epoch"] == epoch

    def told() -> list[dict[str, Any]]:
        events = pair.one.get(f"{path}/events?limit=100")["data"]
        return [one["data"] for one in events if one["type"] == "TenantMoved"]

    eventually(lambda: any(one["node"] == "two" for one in told()), what="the move's event")
    assert pair.one.call("POST", "/tenants/nobody/move", {"node": "two"}).status_code == 404
    assert pair.one.call("POST", f"{path}/move", {"node": "three"}).status_code == 404
    anywhere = pair.one.cli("tenant", "move", made["id"], "--anywhere")
    assert anywhere.code == 0, anywhere.stderr
    assert pair.one.cli("tenant", "move", made["id"]).code == 2


def test_commands_during_a_hand_over_wait_for_the_new_node(pair: Pair) -> None:
    made = pair.make("busy", "one")
    path = f"/tenants/{made['id']}"
    with psycopg.connect(pair.one.database_url) as connection:
        for wanted in ("two", "one", "two"):
            connection.execute(
                "UPDATE tenantry.owners SET wanted = %s WHERE tenant_id = %s",
                [wanted, made["id"]],
            )
            connection.execute("SELECT tenantry.tell('nodes', '')")
            connection.commit()
            for workers in (4, 5, 6):
                for node in pair.nodes.values():
                    answer = node.call("PUT", f"{path}/config/concurrency", {"workers": workers})
                    assert answer.status_code == 200, answer.text
            eventually(lambda: pair.owner(made["id"]) == wanted, what="a hand-over")  # noqa: B023


def test_a_drained_node_is_empty_takes_nothing_and_is_itself_again(pair: Pair) -> None:
    made = pair.make("drained", "two")
    drained = pair.one.cli("nodes", "drain", "two", "--json")
    assert drained.code == 0, drained.stderr
    assert (drained.json["state"], drained.json["tenants"]) == ("draining", 0)
    assert pair.owner(made["id"]) == "one"
    assert pair.two.status_of("/readyz") == 200
    refused = pair.two.call("POST", f"/tenants/{made['id']}/move", {"node": "two"})
    assert refused.status_code == 409
    last = pair.two.call("POST", "/nodes/one/drain")
    assert (last.status_code, "no other node" in last.json()["detail"]) == (409, True)
    assert pair.one.call("POST", "/nodes/two/drain").status_code == 200
    assert pair.one.call("POST", "/nodes/nobody/drain").status_code == 404
    created = pair.two.call("POST", "/tenants", {"name": "new", "id": pair.one.name("new")})
    assert (created.status_code, created.json()["node"]) == (201, "one")
    assert pair.two.cli("nodes", "undrain", "two").code == 0
    listed = pair.one.cli("nodes", "--json").json
    assert {one["name"]: one["state"] for one in listed} == {"one": "active", "two": "active"}
    assert {one["pid"] for one in listed} == {pair.one.process.pid, pair.two.process.pid}
    # The tenant was moved to `two` earlier, so it goes back there.
    eventually(lambda: pair.owner(made["id"]) == "two", what="the tenant is back")
    assert "two" in pair.one.cli("nodes").stdout


def test_a_tenants_token_gets_through_the_wrong_node_what_it_gets_through_the_right_one(
    pair: Pair,
) -> None:
    mine, other = pair.make("mine", "two"), pair.make("other", "two")
    token = pair.token("--tenant", mine["id"])
    calls = [
        ("GET", "/tenants/{}", None),
        ("DELETE", "/tenants/{}", None),
        ("POST", "/tenants/{}/pause", None),
        ("POST", "/tenants/{}/move", {"node": "one"}),
        ("POST", "/tenants/{}/credentials/rotate", None),
        ("GET", "/tenants/{}/audit", None),
        ("POST", "/tenants/{}/dead-letters/replay", {"all": True}),
        ("DELETE", "/tenants/{}/dead-letters", {"all": True}),
        ("GET", "/nodes", None),
        ("POST", "/runtime", {"tenants": [other["id"]]}),
        ("GET", "/status?node=two", None),
        ("POST", "/nodes/two/drain", None),
        ("POST", "/isolation", {}),
    ]
    forged = {
        "Tenantry-Caller": "eyJuYW1lIjoicm9vdCIsInNjb3BlIjoiYWRtaW4iLCJ0ZW5hbnRfaWQiOm51bGwsImFub25"
        "5bW91cyI6ZmFsc2UsImlzc3VlZF9hdCI6bnVsbCwiY2xpZW50Ijoicm9vdCJ9",
        "Tenantry-Peer": "uid=0 pid=1",
    }
    for tenant in (mine, other):
        for method, template, body in calls:
            path = template.format(tenant["id"])
            there = pair.ask("two", method, path, token, body)
            here = pair.ask("one", method, path, token, body)
            lying = pair.ask("one", method, path, {**token, **forged}, body)
            assert here.status_code == there.status_code == lying.status_code, (path, here.text)
            if tenant is other or not path.startswith("/tenants") or "dead" not in path:
                own = tenant is mine and (method, template) == calls[0][:2]
                assert (here.status_code == 200) is own, (path, here.text)
            assert pair.ask("one", method, path, forged, body).status_code == 401
    # A forged mark of a request that was handed on only keeps it from being handed on.
    marked = {**token, "Tenantry-Handed-On": "two"}
    refused = pair.ask("one", "GET", f"/tenants/{mine['id']}", marked)
    assert refused.status_code == 503
    assert pair.ask("one", "GET", f"/tenants/{other['id']}", marked).status_code == 403
    # The journal names the caller.
    admin = pair.token("--admin")
    assert pair.ask("one", "POST", f"/tenants/{mine['id']}/pause", admin).status_code == 200
    last = pair.one.get(f"/tenants/{mine['id']}/events?limit=100")["data"]
    (paused,) = [one for one in last if one["type"] == "TenantPaused"]
    direct = pair.ask("two", "POST", f"/tenants/{other['id']}/pause", admin)
    assert direct.status_code == 200
    last = pair.one.get(f"/tenants/{other['id']}/events?limit=100")["data"]
    assert paused["actor"] == next(one for one in last if one["type"] == "TenantPaused")["actor"]


def test_a_stream_through_the_wrong_node_goes_on_where_a_page_of_the_other_ends(pair: Pair) -> None:
    made = pair.make("followed", "two")
    token = pair.token("--tenant", made["id"])
    messages = f"/tenants/{made['id']}/messages"
    assert pair.ask("two", "POST", messages, token, {"payload": "first"}).status_code == 202

    def page() -> dict[str, Any] | None:
        found = pair.ask("one", "GET", "/messages", token).json()
        return found if found["data"] else None

    follow = eventually(page, what="a row")["follow_cursor"]
    url = f"{pair.tcp('one')}/messages/stream?tenant_id={made['id']}&cursor={follow}"
    sent = pair.ask("one", "POST", messages, token, {"payload": "second", "id": "2"})
    assert sent.status_code == 202, sent.text
    with httpx.stream("GET", url, headers=token, timeout=DEADLINE) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                assert '"payload":"second"' in line.replace(" ", "")
                break


def test_lists_and_looks_show_what_runs_on_both(pair: Pair) -> None:
    left, right = pair.make("left", "one"), pair.make("right", "two")
    for node in pair.nodes.values():
        listed = {one["id"]: one for one in node.get("/tenants?limit=1000")["data"]}
        for tenant, name in ((left, "one"), (right, "two")):
            shown = listed[tenant["id"]]
            assert (shown["node"], shown["workers_current"]) == (name, 3)
        top = {one["tenant_id"]: one for one in node.cli("top", "--json").json["tenants"]}
        assert top[left["id"]]["node"] == "one"
        assert top[right["id"]]["consuming"]
    status = pair.one.cli("status")
    assert "node one; beside it: two (active)" in status.stdout
    assert pair.one.get("/status")["node"] == "one"
    assert pair.one.get("/status?node=two")["node"] == "two"
    assert pair.one.call("GET", "/status?node=three").status_code == 404
    metrics = pair.two.call("GET", "/metrics").text
    assert 'tenantry_node_info{node="two",version=' in metrics
    assert 'tenantry_nodes{state="active"} 2' in metrics
    assert f'tenant_workers_current{{tenant_id="{right["id"]}"}}' in metrics
    assert left["id"] not in metrics
    proof = pair.two.call("POST", "/isolation", {"tenants": [left["id"], right["id"]]})
    assert (proof.status_code, proof.json()["isolated"]) == (200, True), proof.text
    assert len(pair.two.get("/events?limit=1000")["data"]) > 0


def test_a_command_for_a_tenant_whose_node_was_killed_waits_for_the_one_that_takes_it(
    pair: Pair,
) -> None:
    made = pair.make("orphan", "two")
    pair.two.kill()
    answer = pair.one.call("PUT", f"/tenants/{made['id']}/config/concurrency", {"workers": 2})
    assert (answer.status_code, answer.json().get("node")) == (200, "one"), answer.text
    pair.two.start()
