"""The multi-tenant producer and the proof of isolation against a real RabbitMQ."""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import pika
import pytest

from tenantry.broker import topology
from tenantry.broker.port import Credentials, TenantTopology
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain import names
from tenantry.producer import (
    ProducerError,
    ProducerOptions,
    TenantAccess,
    produce,
    verify_isolation,
)
from tenantry.tenant_client.access import credentials_of, every_tenant, rotate, topology_of
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually


class BrokerApi:
    """The daemon's API as far as the producer needs it: real objects on the broker, no daemon.

    Users are shared by all virtual hosts, so each API's users have names of their own.
    """

    def __init__(self, host: RabbitHost) -> None:
        parts = urlsplit(host.management_url)
        self.host = host
        self.tenants: dict[str, dict[str, Any]] = {}
        self.unavailable = 0
        self._prefix = f"producer-{secrets.token_hex(4)}"
        self._administration = RabbitAdministration(
            url=host.url,
            management_url=host.management_url,
            queue_type="classic",
            installation="test",
        )
        self.http = httpx.Client(
            base_url=f"http://{parts.hostname}:{parts.port}/api",
            auth=(parts.username or "", parts.password or ""),
            trust_env=False,
            timeout=30,
        )

    def close(self) -> None:
        for tenant_id in self.tenants:
            self.http.delete(f"/users/{self.user(tenant_id)}")
        self.http.close()
        self._administration.close()

    def user(self, tenant_id: str) -> str:
        return f"{self._prefix}-{tenant_id}"

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        if self.unavailable and method == "POST":
            self.unavailable -= 1
            return 503, {"detail": "starting"}
        match (method, *urlsplit(path).path.strip("/").split("/")):
            case ("GET", "healthz"):
                return 200, {"status": "ok"}
            case ("GET", "tenants"):
                return 200, {"data": list(self.tenants.values()), "next_cursor": None}
            case ("POST", "tenants"):
                if body["id"] in self.tenants:
                    return 409, {"detail": "exists"}
                self.tenants[body["id"]] = {"state": "active", **body}
                self._ensure(body["id"])
                return 201, {**self.tenants[body["id"]], "credentials": self.rotate(body["id"])}
            case ("GET", "tenants", tenant_id):
                return 200, self.tenants[tenant_id]
            case ("POST", "tenants", tenant_id, "topics"):
                tenant = self.tenants[tenant_id]
                tenant["topics"] += [one for one in body["topics"] if one not in tenant["topics"]]
                self._ensure(tenant_id)
                return 200, tenant
            case ("POST", "tenants", tenant_id, "credentials", "rotate"):
                answer = {**self.tenants[tenant_id], "credentials": self.rotate(tenant_id)}
                return 200, answer
            case _:
                return 404, {"detail": f"{method} {path}"}

    def _ensure(self, tenant_id: str) -> None:
        tenant = self.tenants[tenant_id]
        self._administration.ensure_topology(
            TenantTopology(
                tenant_id=tenant_id,
                topics=tuple(tenant["topics"]),
                partitions=tenant["partitions"],
            )
        )

    def rotate(self, tenant_id: str) -> dict[str, str]:
        user, password = self.user(tenant_id), secrets.token_urlsafe(12)
        self.http.put(f"/users/{user}", json={"password": password, "tags": ""}).raise_for_status()
        allowed = topology.permissions(tenant_id)
        self.allow(tenant_id, write=allowed.write, read=allowed.read)
        url = urlsplit(self.host.url)
        address = f"{url.hostname}:{url.port}"
        return {
            "username": user,
            "password": password,
            "amqp_url": urlunsplit(url._replace(netloc=f"{user}:{password}@{address}")),
        }

    def allow(self, tenant_id: str, *, configure: str = "^$", write: str, read: str) -> None:
        self.http.put(
            f"/permissions/{self.host.vhost}/{self.user(tenant_id)}",
            json={"configure": configure, "write": write, "read": read},
        ).raise_for_status()

    def access(self, tenant_id: str) -> TenantAccess:
        return TenantAccess(
            topology=topology_of(self.tenants[tenant_id]), credentials=rotate(self, tenant_id)
        )

    def cut_connections(self) -> int:
        mine = [
            one["name"]
            for one in self.http.get("/connections").raise_for_status().json()
            if str(one.get("user", "")).startswith(self._prefix)
        ]
        for name in mine:
            self.http.delete(f"/connections/{quote(name, safe='')}")
        return len(mine)


@pytest.fixture
def api(rabbitmq: RabbitHost) -> Iterator[BrokerApi]:
    made = BrokerApi(rabbitmq)
    yield made
    made.close()


@pytest.fixture
def channel(rabbitmq: RabbitHost) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        yield connection.channel()


def small(**given: Any) -> ProducerOptions:
    return ProducerOptions(
        **({"tenants": 2, "producers": 1, "partitions": 2, "batches": 2} | given)
    )


def depth(channel: Any, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count


def taken(channel: Any, queue: str) -> list[tuple[Any, bytes]]:
    """Take out what lies in a queue; to get each singly costs much more."""
    found: list[tuple[Any, bytes]] = []
    if count := depth(channel, queue):
        for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=20):
            assert body is not None, f"{len(found)} of {count} messages"
            found.append((properties, body))
            if len(found) == count:
                break
        channel.cancel()
    return found


def queues(tenant_id: str, partitions: int) -> list[str]:
    return [
        names.partition_queue_name(tenant_id, topic, partition)
        for topic in ("events", "logs", "notifications")
        for partition in range(partitions)
    ]


def test_by_default_2700_messages_are_spread_evenly(api: BrokerApi, channel: Any) -> None:
    lines: list[str] = []
    advanced: list[int] = []
    result = produce(ProducerOptions(), api, say=lines.append, progress=advanced.append)
    assert (result.total.sent, result.total.confirmed, result.total.failed) == (2700, 2700, 0)
    assert result.succeeded
    assert sum(advanced) == 2700
    for tenant_id in ("1", "2", "3"):
        assert [depth(channel, queue) for queue in queues(tenant_id, 3)] == [100] * 9
    assert depth(channel, names.queue_name("1")) == 0


def test_the_lines_are_those_of_the_contract(api: BrokerApi) -> None:
    lines: list[str] = []
    produce(small(partitions=3), api, say=lines.append)
    assert lines[:16] == [
        "--- Multi-tenant producer has started, tenants: 2, producers: 1, partitions: 3 ---",
        "--- Creating root client to manage streams and users ---",
        "--- Creating streams and users with permissions for each tenant ---",
        "Created stream: tenant_1_stream with ID: 1",
        "Created user: tenant_1_producer with ID: 1, with permissions for stream: tenant_1_stream",
        "Created stream: tenant_2_stream with ID: 2",
        "Created user: tenant_2_producer with ID: 2, with permissions for stream: tenant_2_stream",
        "--- Creating clients for each tenant ---",
        "--- Ensuring access to streams for each tenant ---",
        "Ensured access to stream: tenant_1_stream",
        "Ensured no access to stream: tenant_2_stream",
        "Ensured access to stream: tenant_2_stream",
        "Ensured no access to stream: tenant_1_stream",
        "--- Starting 1 producer(s) for each tenant ---",
        lines[14],
        lines[15],
    ]
    sent = [line for line in lines if line.startswith("Sent")]
    assert len(sent) == 2 * 3 * 2
    assert "Sent: 10 message(s) by tenant: 1, producer: 1, to: tenant_1_stream -> events" in sent
    assert lines[-3:] == [
        "Tenant: 1, sent: 60, confirmed: 60, failed: 0",
        "Tenant: 2, sent: 60, confirmed: 60, failed: 0",
        "Total: sent: 120, confirmed: 120, failed: 0",
    ]


def test_messages_are_text_persistent_and_unmistakable(api: BrokerApi, channel: Any) -> None:
    produce(small(tenants=1, producers=2), api, say=lambda _line: None)
    found = [one for queue in queues("1", 2) for one in taken(channel, queue)]
    expected = Counter(
        f"{kind}-{producer}-{message}".encode()
        for kind in ("event", "log", "notification")
        for producer in (1, 2)
        for message in range(1, 21)
    )
    assert Counter(body for _, body in found) == expected
    assert len({properties.message_id for properties, _ in found}) == len(found)
    assert {properties.content_type for properties, _ in found} == {"text/plain"}
    assert {properties.delivery_mode for properties, _ in found} == {2}
    assert all(properties.headers["timestamp_in_ms"] > 1e12 for properties, _ in found)


def test_it_may_run_twice_and_an_existing_tenant_keeps_its_partitions(
    api: BrokerApi, channel: Any
) -> None:
    api.send("POST", "/tenants", {"id": "1", "name": "one", "topics": ["events"], "partitions": 2})
    lines: list[str] = []
    result = produce(small(partitions=4), api, say=lines.append)
    assert result.succeeded
    assert "Found stream: tenant_1_stream with ID: 1" in lines
    assert any("tenant 1 exists with 2 partition(s)" in line for line in lines)
    assert produce(small(partitions=4), api, say=lines.append).succeeded
    assert sum(depth(channel, queue) for queue in queues("1", 2)) == 120
    ids = [p.message_id for queue in queues("1", 2) for p, _ in taken(channel, queue)]
    assert len(set(ids)) == 120


def test_a_daemon_that_is_still_starting_is_waited_for(api: BrokerApi) -> None:
    api.unavailable = 2
    assert produce(small(tenants=1, batches=1), api, say=lambda _line: None).succeeded


def test_lost_connections_lose_no_message(api: BrokerApi, channel: Any) -> None:
    lines: list[str] = []
    done = threading.Event()
    results: list[Any] = []

    def run() -> None:
        options = small(ensure_access=False, batches=60, batch_size=3, interval=0.1)
        results.append(produce(options, api, say=lines.append))
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    # The broker lists a connection only once it has gathered statistics of it.
    cut = eventually(lambda: api.cut_connections() or done.is_set())
    thread.join(60)
    assert cut is not True, "all was sent before a connection was listed"
    assert results[0].succeeded, [line for line in lines if not line.startswith("Sent")]
    for tenant_id in ("1", "2"):
        found = [one for queue in queues(tenant_id, 2) for one in taken(channel, queue)]
        assert len({properties.message_id for properties, _ in found}) == 3 * 60 * 3


def test_what_no_queue_takes_is_tried_again_and_then_counted(
    api: BrokerApi, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.producer.run.ATTEMPTS", 2)
    monkeypatch.setattr("tenantry.producer.run.FIRST_BACKOFF", 0.01)
    produce(small(tenants=1, batches=1), api, say=lambda _line: None)
    channel.queue_unbind(
        names.partition_queue_name("1", "logs", 1), names.exchange_name("1"), "logs.1"
    )
    lines: list[str] = []
    result = produce(small(tenants=1), api, say=lines.append)
    assert (result.total.sent, result.total.confirmed) == (60, 50)
    assert not result.succeeded
    assert sum(line.startswith("Retrying: 5") for line in lines) == 2
    failed = [line for line in lines if line.startswith("Failed: 5")]
    assert len(failed) == 2
    assert "no queue takes it" in failed[0]


def test_a_broker_that_stays_away_is_given_up(
    api: BrokerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.producer.run.ATTEMPTS", 2)
    monkeypatch.setattr("tenantry.producer.run.FIRST_BACKOFF", 0.01)
    options = small(tenants=1, batches=50, ensure_access=False, amqp_address="127.0.0.1:1")
    result = produce(options, api, say=lambda _line: None)
    assert (result.total.sent, result.total.failed) == (1500, 1500)


def test_isolation_holds_and_leaves_no_trace(api: BrokerApi, channel: Any) -> None:
    produce(small(ensure_access=False), api, say=lambda _line: None)
    channel.confirm_delivery()
    channel.basic_publish(names.exchange_name("1"), "default", b"waiting")
    everybody = every_tenant(api)
    before = [depth(channel, queue) for one in everybody for queue in one.queue_names]
    report = verify_isolation([api.access("1"), api.access("2")], everybody, say=lambda _line: None)
    assert report.holds
    tried = {(one.owner, one.action, one.target) for one in report.checks if one.tenant_id == "1"}
    assert tried >= {
        ("1", "read", "tenant_1_dead_letters"),
        ("2", "write", "dlx_exchange (by its id)"),
        ("2", "write", "tenant_2_queue (through the default exchange, by its name)"),
        ("2", "write", "tenant_1_stream (in the name of tenant_2_producer)"),
        ("2", "read", "tenant_2_queue (by purging it)"),
        ("2", "read", "tenant_2_stream (by binding tenant_1_stream to it)"),
        ("2", "configure", "tenant_2_queue (by deleting it)"),
        ("2", "configure", "tenant_2_stream (by deleting it)"),
    }
    assert [depth(channel, queue) for one in everybody for queue in one.queue_names] == before
    assert [body for _, body in taken(channel, names.queue_name("1"))] == [b"waiting"]


def test_every_kind_of_leak_is_found(api: BrokerApi, channel: Any) -> None:
    produce(small(ensure_access=False, batches=1), api, say=lambda _line: None)
    everybody = every_tenant(api)
    access = api.access("1")
    foreign = everybody[1]
    nothing = "^$"
    for configure, write, read, target in [
        (nothing, "^tenant_(1|2)_stream$", "^tenant_1_queue$", "tenant_2_stream"),
        # The broker asks for the default exchange's permission by this name.
        (
            nothing,
            "^(tenant_1_stream|amq\\.default)$",
            "^tenant_1_queue$",
            "tenant_2_queue (through the",
        ),
        (nothing, "^(tenant_1_stream|dlx_exchange)$", "^tenant_1_queue$", "dlx_exchange"),
        (nothing, "^tenant_1_stream$", "^tenant_(1|2)_queue$", "tenant_2_queue"),
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_stream\\.logs\\.1)$",
            "tenant_2_stream.logs.1",
        ),
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_dead_letters)$",
            "tenant_2_dead_letters",
        ),
        ("^tenant_2_queue$", "^tenant_1_stream$", "^tenant_1_queue$", "tenant_2_queue"),
        ("^tenant_2_stream$", "^tenant_1_stream$", "^tenant_1_queue$", "tenant_2_stream"),
        # Whoever may read a stream may bind something to it, and listen.
        (
            nothing,
            "^tenant_1_stream$",
            "^tenant_(1_queue|2_stream)$",
            "tenant_2_stream (by binding t",
        ),
    ]:
        api.allow("1", configure=configure, write=write, read=read)
        lines: list[str] = []
        report = verify_isolation([access], everybody, say=lines.append)
        leaks = [one for one in report.leaks if one.owner == "2"]
        assert len(leaks) == 1
        assert leaks[0].target.startswith(target)
        assert not report.holds
        assert any(line.startswith("LEAK: tenant 1") and target in line for line in lines)
        assert "Ensured no access to stream: tenant_2_stream" not in lines
    assert sum(depth(channel, queue) for queue in foreign.queue_names) == 30


def test_a_tenant_shut_out_of_its_own_stream_is_reported(api: BrokerApi) -> None:
    produce(small(ensure_access=False, batches=1), api, say=lambda _line: None)
    access = api.access("1")
    api.allow("1", write="^$", read="^$")
    lines: list[str] = []
    report = verify_isolation([access], every_tenant(api), say=lines.append)
    assert not report.holds
    stream, queues = names.exchange_name("1"), access.topology.queue_names
    assert [one.target for one in report.denials] == [stream, *queues]
    assert not report.leaks
    assert [re.sub(r":.*", "", line) for line in lines] == [
        *["NO ACCESS"] * (1 + len(queues)),
        "Ensured no access to stream",
    ]


def test_a_user_that_reaches_the_management_api_is_a_leak(api: BrokerApi) -> None:
    produce(small(ensure_access=False, batches=1), api, say=lambda _line: None)
    access, everybody = api.access("1"), every_tenant(api)
    base = api.http.base_url
    address = f"{base.scheme}://{base.host}:{base.port}"
    refused = verify_isolation([access], everybody, say=lambda _line: None, management=address)
    assert refused.holds
    tried = {one.target: one.allowed for one in refused.checks if "management API" in one.target}
    assert tried == {
        "/api/whoami (the management API)": False,
        "/api/queues (the management API)": False,
    }
    password = access.credentials.password
    for tags in ("management", "monitoring"):
        body = {"password": password, "tags": tags}
        api.http.put(f"/users/{api.user('1')}", json=body).raise_for_status()
        leaky = verify_isolation([access], everybody, say=lambda _line: None, management=address)
        assert {one.target for one in leaky.leaks} == tried.keys()


def test_a_management_api_that_gives_no_answer_gives_no_verdict(api: BrokerApi) -> None:
    produce(small(ensure_access=False, batches=1), api, say=lambda _line: None)
    access = api.access("1")
    base = api.http.base_url
    for address, reason in (
        ("http://127.0.0.1:1", "can't be reached"),
        (f"http://{base.host}:{base.port}/nowhere", "answered 404"),
    ):
        with pytest.raises(ProducerError, match=f"tenant 1's access can't be judged.*{reason}"):
            verify_isolation(
                [access], [access.topology], say=lambda _line: None, management=address
            )


def test_credentials_that_don_t_work_are_an_error_and_no_verdict(api: BrokerApi) -> None:
    produce(small(ensure_access=False, batches=1), api, say=lambda _line: None)
    right = api.access("1")
    wrong = credentials_of(
        {
            "username": right.credentials.username,
            "password": "wrong",
            "amqp_url": right.credentials.amqp_url.replace(right.credentials.password, "wrong"),
        }
    )
    assert isinstance(wrong, Credentials)
    access = TenantAccess(topology=right.topology, credentials=wrong)
    with pytest.raises(ProducerError, match="tenant 1's access can't be judged") as caught:
        verify_isolation([access], [right.topology], say=lambda _line: None)
    assert "wrong" not in str(caught.value)


def test_names_tell_every_queue_a_tenant_reads() -> None:
    one = TenantTopology(tenant_id="a", topics=("x", "y"), partitions=2)
    assert one.queue_names == (
        "tenant_a_queue",
        "tenant_a_stream.x.0",
        "tenant_a_stream.x.1",
        "tenant_a_stream.y.0",
        "tenant_a_stream.y.1",
    )
