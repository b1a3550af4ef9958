"""Tenants over the real control socket."""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest

from tenantry.api.schemas import tenants as schemas
from tenantry.domain.limits import MAX_WORKERS
from tenantry.domain.tenant import MAX_TOPICS, Lifecycle, TenantState
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE

FIELDS = {
    "id", "name", "state", "workers", "topics", "partitions", "stream", "queue", "version",
    "incarnation", "node", "epoch", "created_at", "updated_at", "workers_current",
    "messages_pending", "parked", "parked_at", "trouble", "consumer_access", "limits",
    "topic_settings", "rate", "dead_lettered",
}  # fmt: skip


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        yield served


def test_a_created_tenant_is_answered_with_its_location_and_credentials(api: Served) -> None:
    answer = api.control.post(
        "/tenants",
        json={"id": "acme", "name": "Acme", "workers": 5, "topics": ["logs"], "partitions": 2},
    )
    assert answer.status_code == 201
    assert answer.headers["location"] == "/tenants/acme"
    body = answer.json()
    assert body.keys() == FIELDS | {"credentials"}
    assert body["credentials"] == {
        "username": "tenant_acme_producer",
        "password": "shown once",
        "amqp_url": "amqp://localhost",
    }
    assert body["state"] == "active"
    assert (body["workers"], body["workers_current"], body["partitions"]) == (5, 5, 2)
    assert (body["stream"], body["queue"]) == ("tenant_acme_stream", "tenant_acme_queue")
    assert body["created_at"].endswith("Z")


def test_credentials_are_not_shown_again(api: Served) -> None:
    api.control.post("/tenants", json={"id": "acme", "name": "Acme"})
    assert api.control.get("/tenants/acme").json().keys() == FIELDS


def test_an_id_is_made_where_none_is_given_and_workers_are_the_default(api: Served) -> None:
    body = api.control.post("/tenants", json={"name": "Acme"}).json()
    assert str(UUID(body["id"])) == body["id"]
    assert body["workers"] == 3
    assert (body["topics"], body["partitions"], body["messages_pending"]) == ([], 1, None)


def test_waiting_messages_are_shown(api: Served) -> None:
    api.world.create("acme")
    api.world.control.pending["acme"] = 42
    assert api.control.get("/tenants/acme").json()["messages_pending"] == 42


def test_tenants_are_listed_page_by_page(api: Served) -> None:
    for number in range(5):
        api.world.create(f"t{number}")
    found, cursor = [], None
    for _ in range(3):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.control.get("/tenants", params=params).json()
        found += [one["id"] for one in page["data"]]
        cursor = page["next_cursor"]
    assert found == ["t0", "t1", "t2", "t3", "t4"]
    assert cursor is None


def test_no_tenants_are_an_empty_list(api: Served) -> None:
    assert api.control.get("/tenants").json() == {
        "data": [],
        "next_cursor": None,
        "silent_nodes": [],
    }


def test_workers_are_resized(api: Served) -> None:
    api.world.create("acme")
    answer = api.control.put("/tenants/acme/config/concurrency", json={"workers": 64})
    assert answer.status_code == 200
    assert answer.json()["workers"] == 64


def test_limits_are_changed_one_by_one_and_shown_with_the_tenant(api: Served) -> None:
    api.world.create("acme")
    unlimited = api.control.get("/tenants/acme").json()["limits"]
    assert unlimited.pop("weight") == 1
    assert not any(unlimited.values())
    limits = {"weight": 3, "rate": 500, "backlog": {"messages": 1000}, "retention": {"age": "7d"}}
    assert api.control.put("/tenants/acme/limits", json=limits).status_code == 200
    again = api.control.put(
        "/tenants/acme/limits", json={"rate": None, "backlog": {"bytes": 4096.0}}
    )
    changed = again.json()["limits"]
    assert (changed["weight"], changed["rate"]) == (3, None)
    assert changed["backlog"] == {"messages": 1000, "bytes": 4096}
    assert changed["retention"] == {"age": 7 * 24 * 60 * 60, "rows": None}
    lifted = api.control.put("/tenants/acme/limits", json={"backlog": None})
    assert lifted.json()["limits"]["backlog"] is None
    assert api.control.get("/tenants/acme").json()["limits"] == lifted.json()["limits"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0}, {"rate": "10"}, {"rate": True}, {"weight": 1001}, {"burst": 5}, {"speed": 1},
        {"backlog": 5}, {"backlog": {"rows": 1}}, {"retention": {"age": "soon"}},
        {"retention": {"age": "0s"}}, {"workers_min": 5, "workers_max": 4}, [],
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused_and_change_nothing(
    api: Served, wrong: object
) -> None:
    api.world.create("acme")
    assert api.control.put("/tenants/acme/limits", json=wrong).status_code == 422
    assert api.control.get("/tenants/acme").json()["version"] == 2


def test_a_tenant_is_paused_and_resumed(api: Served) -> None:
    api.world.create("acme")
    assert api.control.post("/tenants/acme/pause").json()["state"] == "paused"
    assert api.control.post("/tenants/acme/resume").json()["state"] == "active"


def test_rotated_credentials_are_shown_once(api: Served) -> None:
    api.world.create("acme")
    answer = api.control.post("/tenants/acme/credentials/rotate")
    assert answer.status_code == 200
    assert answer.json()["credentials"]["password"] == "shown once"
    assert answer.headers["cache-control"] == "no-store"


def test_topics_are_added(api: Served) -> None:
    api.world.create("acme", topics=("logs",))
    answer = api.control.post("/tenants/acme/topics", json={"topics": ["logs", "events"]})
    assert answer.json()["topics"] == ["logs", "events"]


def test_topics_have_partitions_and_ordering_of_their_own(api: Served) -> None:
    orders = {"name": "orders", "partitions": 8, "ordering": "partition"}
    body = {"id": "acme", "name": "Acme", "topics": ["logs", orders], "partitions": 2}
    made = api.control.post("/tenants", json=body).json()
    added = {"topics": [{"name": "audit", "ordering": "partition"}]}
    found = api.control.post("/tenants/acme/topics", json=added).json()
    logs = {"name": "logs", "partitions": 2, "ordering": "none"}
    audit = {"name": "audit", "partitions": 2, "ordering": "partition"}
    assert made["topics"] == ["logs", "orders"]
    assert made["topic_settings"] == [logs, orders]
    assert found["topic_settings"] == [logs, orders, audit]
    keyed = {"payload": 1, "topic": "orders", "key": "customer-42"}
    api.control.post("/tenants/acme/messages", json=keyed)
    (sent,) = api.world.publishing.sent
    assert sent.routing_key == f"orders.{zlib.crc32(b'customer-42') % 8}"


@pytest.mark.parametrize(
    "topic",
    [
        {"partitions": 3},
        {"name": "orders", "partitions": 0},
        {"name": "orders", "partitions": 65},
        {"name": "orders", "ordering": "key"},
        {"name": "orders", "colour": "red"},
        {"name": "a.b"},
        7,
    ],
)
def test_a_topic_that_can_not_be_is_refused(api: Served, topic: object) -> None:
    answer = api.control.post("/tenants", json={"name": "Acme", "topics": [topic]})
    assert (answer.status_code, api.control.get("/tenants").json()["data"]) == (422, [])


def test_a_deleted_tenant_is_gone_and_its_id_free(api: Served) -> None:
    api.world.create("acme")
    answer = api.control.delete("/tenants/acme")
    assert (answer.status_code, answer.content) == (204, b"")
    assert api.control.get("/tenants/acme").status_code == 404
    assert api.control.delete("/tenants/acme").status_code == 404
    assert api.control.post("/tenants", json={"id": "acme", "name": "A"}).status_code == 201


def test_the_past_is_shown_by_version(api: Served) -> None:
    api.world.create("acme")
    api.control.put("/tenants/acme/config/concurrency", json={"workers": 9})
    api.control.delete("/tenants/acme")
    past = api.control.get("/tenants/acme", params={"at": "2"}).json()
    assert past.keys() == FIELDS
    assert (past["state"], past["workers"], past["version"]) == ("active", 3, 2)
    assert (past["workers_current"], past["messages_pending"]) == (None, None)
    assert api.control.get("/tenants/acme", params={"at": "5"}).json()["state"] == "deleted"


def test_the_past_is_shown_by_time(api: Served) -> None:
    api.world.create("acme")
    now = datetime.now(UTC).isoformat()
    api.control.delete("/tenants/acme")
    assert api.control.get("/tenants/acme", params={"at": now}).json()["state"] == "active"
    assert api.control.get(f"/tenants/acme?at={now}").json()["state"] == "active"
    before = api.control.get("/tenants/acme", params={"at": "2001-01-01T00:00:00Z"})
    assert before.status_code == 404


@pytest.mark.parametrize("version", ["0", "99", "9" * 30, "0" * 40])
def test_a_version_that_never_was_is_404(api: Served, version: str) -> None:
    api.world.create("acme")
    assert api.control.get("/tenants/acme", params={"at": version}).status_code == 404


def test_the_journal_names_the_peer_and_the_request(api: Served) -> None:
    api.control.post(
        "/tenants", json={"id": "acme", "name": "A"}, headers={"X-Request-ID": "req-1"}
    )
    metadata = api.world.control.metadata[-1]
    assert metadata.actor == f"uid={os.getuid()} pid={os.getpid()}"
    assert metadata.correlation_id == "req-1"


def test_on_tcp_the_journal_names_the_address(api: Served) -> None:
    assert api.tcp.post("/tenants", json={"id": "acme", "name": "A"}).status_code == 201
    assert api.world.control.metadata[-1].actor == "anonymous@127.0.0.1"


def test_headers_change_neither_the_address_nor_the_listener(api: Served) -> None:
    forged = {"X-Forwarded-For": "10.1.2.3", "X-Real-IP": "10.1.2.3", "Forwarded": "for=10.1.2.3"}
    api.tcp.post("/tenants", json={"id": "acme", "name": "A"}, headers=forged)
    assert api.world.control.metadata[-1].actor == "anonymous@127.0.0.1"


def test_a_sane_request_id_comes_back_and_any_other_is_replaced(api: Served) -> None:
    same = api.control.get("/healthz", headers={"X-Request-ID": "abc-1"})
    assert same.headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 129, "<script>"):
        other = api.control.get("/healthz", headers={"X-Request-ID": bad})
        assert UUID(other.headers["x-request-id"])


def test_curl_reaches_the_control_socket(api: Served) -> None:
    api.world.create("acme")
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--unix-socket", str(api.path), "http://localhost/tenants"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert [one["id"] for one in json.loads(done.stdout)["data"]] == ["acme"]


def test_curl_creates_a_tenant_and_is_named_by_its_pid(api: Served) -> None:
    process = subprocess.Popen(
        ["curl", "-sS", "--max-time", "10", "--unix-socket", str(api.path),
         "-H", "Content-Type: application/json", "-d", '{"id":"acme","name":"A"}',
         "-w", "%{http_code}", "-o", "/dev/null", "http://localhost/tenants"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, _ = process.communicate(timeout=DEADLINE)
    assert out == "201"
    assert api.world.control.metadata[-1].actor == f"uid={os.getuid()} pid={process.pid}"


def test_both_listeners_serve_the_same_document(api: Served) -> None:
    one, other = api.control.get("/openapi.json"), api.tcp.get("/openapi.json")
    assert one.json() == other.json()
    assert httpx.codes.is_success(one.status_code)


def test_a_tenant_made_under_other_limits_is_shown_all_the_same() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    state = TenantState(
        tenant_id="acme", name="A", lifecycle=Lifecycle.ACTIVE, workers=MAX_WORKERS + 1,
        topics=tuple(f"t{n}" for n in range(MAX_TOPICS + 1)), partitions=1, version=1,
        created_at=at, updated_at=at,
    )  # fmt: skip
    shown = schemas.Tenant.of(state, None)
    assert (shown.workers, len(shown.topics)) == (MAX_WORKERS + 1, MAX_TOPICS + 1)


def test_tenants_are_searched_and_sorted_page_by_page(api: Served) -> None:
    for tenant_id, name, rate in (("a", "Zeta", 2), ("b", "beta", 0), ("c", "Alpha", 9)):
        api.world.create(tenant_id, name=name)
        api.world.control.pending[tenant_id] = rate

    def listed(**params: object) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            asked = {**params, "limit": 1, **({} if cursor is None else {"cursor": cursor})}
            answer = api.control.get("/tenants", params=asked)  # type: ignore[arg-type]
            found += [one["id"] for one in answer.json()["data"]]
            if (cursor := answer.json()["next_cursor"]) is None:
                return found

    assert listed(sort="name") == ["c", "b", "a"]
    assert listed(sort="-id") == ["c", "b", "a"]
    assert listed(sort="-pending") == ["c", "a", "b"]
    assert listed(search="ETA") == ["a", "b"]
    assert listed(search="eta", sort="pending") == ["b", "a"]
    assert listed(search="nobody") == []
    other = api.control.get("/tenants", params={"sort": "name", "limit": 1}).json()["next_cursor"]
    for given in ({}, {"sort": "-name"}, {"sort": "name", "search": "a"}):
        assert api.control.get("/tenants", params={**given, "cursor": other}).status_code == 400
    for given in ({"sort": "colour"}, {"sort": "--id"}, {"search": "\0"}):
        assert api.control.get("/tenants", params=given).status_code == 422
