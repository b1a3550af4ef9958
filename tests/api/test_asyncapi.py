"""A tenant's AsyncAPI document: what it says is so, whole, and no one else's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tenantry.api.asyncapi import HttpPlace, document_of
from tenantry.api.asyncapi_brokers import KINDS, BrokerPlace
from tenantry.broker.port import TenantTopology
from tenantry.broker.select import SYSTEMS
from tenantry.domain.commands import ChangeLimits
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.journal.port import Metadata
from tests.api.page import token
from tests.api.serving import SECRET, World, serving
from tests.depth import examples
from tests.waiting import DEADLINE

PLACES = {
    "rabbitmq": BrokerPlace(
        system="rabbitmq", scheme="amqps", host="rabbit.test:5671", path="tenants"
    ),
    "postgresql": BrokerPlace(host="db.test:5432", path="app"),
    "iggy": BrokerPlace(system="iggy", scheme="iggy", host="iggy.test:8090"),
}
PARSER = Path(sys.prefix) / "asyncapi"
"""Where `make deploy-tools` puts AsyncAPI's own."""

STATE = TenantState(
    tenant_id="acme",
    name="Acme Ltd",
    lifecycle=Lifecycle.ACTIVE,
    workers=3,
    topics=("events", "orders"),
    partitions=2,
    version=7,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    topic_partitions=(2, 3),
    ordered=("orders",),
    consumer_access=True,
)


def document(system: str, state: TenantState = STATE) -> dict[str, Any]:
    made = document_of(state, PLACES[system], HttpPlace(host="api.test"), max_body_bytes=1024)
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (str(one) for name, one in value.items() if name == "$ref")
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def at(made: dict[str, Any], pointer: str) -> Any:
    found: Any = made
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_every_kind_of_broker_is_described() -> None:
    assert KINDS.keys() == PLACES.keys() == set(SYSTEMS.values())


@pytest.mark.parametrize("system", PLACES)
def test_what_a_document_refers_to_is_there_and_is_what_it_should_be(system: str) -> None:
    made = document(system)
    assert made["asyncapi"] == "3.0.0"
    for reference in references(made):
        assert at(made, reference), reference
    for operation in made["operations"].values():
        channel = operation["channel"]["$ref"]
        assert channel.startswith("#/channels/")
        for message in operation.get("messages", ()):
            assert message["$ref"].startswith(f"{channel}/messages/")
    for name, channel in made["channels"].items():
        in_address = set(re.findall(r"{(\w+)}", channel["address"]))
        assert in_address == channel.get("parameters", {}).keys(), name
    named = {one["$ref"].rpartition("/")[2] for one in references_of_messages(made)}
    assert named == made["components"]["messages"].keys()


def references_of_messages(made: dict[str, Any]) -> list[dict[str, str]]:
    return [
        one for channel in made["channels"].values() for one in channel.get("messages", {}).values()
    ]


def test_on_rabbitmq_channels_are_the_exchange_its_keys_and_the_queues_that_there_are() -> None:
    made = document("rabbitmq")
    broker = made["servers"]["broker"]
    assert (broker["protocol"], broker["host"]) == ("amqps", "rabbit.test:5671")
    assert broker["pathname"] == "/tenants"
    channels = made["channels"]
    assert channels["default"]["address"] == "default"
    assert channels["orders"]["address"] == "orders.{partition}"
    assert channels["orders"]["parameters"]["partition"]["enum"] == ["0", "1", "2"]
    exchange = channels["orders"]["bindings"]["amqp"]["exchange"]
    assert exchange == {
        "name": "tenant_acme_stream", "type": "direct", "durable": True, "autoDelete": False,
        "vhost": "tenants",
    }  # fmt: skip
    queues = {
        channel["bindings"]["amqp"]["queue"]["name"]
        for channel in channels.values()
        if channel.get("bindings", {}).get("amqp", {}).get("is") == "queue"
    }
    topology = TenantTopology(
        tenant_id="acme", topics=STATE.topics, partitions=2, topic_partitions=(2, 3)
    )
    copies = {f"tenant_acme_consumer.{topic}" for topic in ("default", *STATE.topics)}
    assert queues == {*topology.queue_names, *copies}
    assert made["operations"]["orders.consume"]["action"] == "send"
    without = document("rabbitmq", state=_without_consumers())
    assert not [one for one in without["operations"] if one.endswith(".consume")]


def _without_consumers() -> TenantState:
    return replace(STATE, consumer_access=False)


def test_on_the_other_brokers_it_is_what_their_clients_call() -> None:
    sql = document("postgresql")["channels"]["events"]["x-sql"]
    assert sql["publish"] == (
        "SELECT tenantry.publish('events', $1, id => $2, headers => $3, key => $4)"
    )
    assert document("postgresql")["servers"]["broker"]["pathname"] == "/app"
    place = document("iggy")["channels"]["orders"]
    assert place["address"] == "tenant_acme_stream/orders/{partition}"
    assert place["x-iggy"] == {"stream": "tenant_acme_stream", "topic": "orders", "partitions": 3}


def test_what_is_understood_of_headers_is_named() -> None:
    messages = document("rabbitmq")["components"]["messages"]
    understood = messages["json"]["headers"]["properties"].keys()
    assert understood >= {"message_id", "traceparent", "tracestate", "timestamp_in_ms"}
    binary = messages["cloudeventBinary"]["headers"]
    assert set(binary["required"]) == {
        f"cloudEvents:{name}" for name in ("specversion", "id", "source", "type")
    }
    assert messages["cloudevent"]["contentType"] == "application/cloudevents+json"


@pytest.mark.skipif(
    shutil.which("node") is None or not PARSER.is_dir(),
    reason="AsyncAPI's parser is not here: make deploy-tools",
)
def test_asyncapis_own_parser_finds_nothing_wrong() -> None:
    systems = examples(["rabbitmq", "postgresql"], [*PLACES])
    given = [document(system) for system in systems]
    given += examples([], [document(system, _without_consumers()) for system in systems])
    broken = document("rabbitmq")
    broken["operations"]["orders.publish"]["action"] = "publish"
    script = Path(__file__).parents[1] / "asyncapi_parser.mjs"
    ran = subprocess.run(
        ["node", str(script), str(PARSER)],
        input=json.dumps([*given, broken]), capture_output=True, text=True, timeout=DEADLINE,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    # 3.1 is out, which the parser would have everybody write.
    told = [
        one | {"wrong": [p for p in one["problems"] if p["code"] != "asyncapi-latest-version"]}
        for one in json.loads(ran.stdout)
    ]
    assert told.pop()["wrong"]
    for made, one in zip(given, told, strict=True):
        assert one["wrong"] == []
        assert len(one["channels"]) == len(made["channels"])
        assert "receive orders.publish" in one["operations"]


def test_a_tenant_reads_its_own_document_and_no_other_tenants() -> None:
    with serving(World(jwt_secret=SECRET, broker=PLACES["rabbitmq"])) as api:
        api.world.create("acme", topics=("events",), partitions=2)
        api.world.create("globex")
        path = "/tenants/{}/asyncapi.json"
        own = {"Authorization": f"Bearer {token('acme')}"}
        answer = api.tcp.get(path.format("acme"), headers=own)
        assert answer.status_code == 200
        made = answer.json()
        assert "globex" not in answer.text
        assert "password" not in answer.text.lower().replace("userpassword", "")
        assert made["servers"]["api"]["host"] == answer.request.headers["host"]
        assert made["servers"]["api"]["security"]
        assert api.tcp.get(path.format("globex"), headers=own).status_code == 403
        assert api.tcp.get(path.format("acme")).status_code == 401
        assert api.control.get(path.format("nobody")).status_code == 404


def test_it_follows_the_tenant_and_shows_its_limits() -> None:
    with serving(World()) as api:
        api.world.create("acme", topics=("events",))
        api.world.control.execute(
            ChangeLimits(tenant_id="acme", changes={"rate": 5}),
            metadata=Metadata(actor="test"),
            timeout=DEADLINE,
        )
        made = api.control.get("/tenants/acme/asyncapi.json").json()
        assert made["info"]["x-limits"]["rate"] == 5
        assert made["info"]["x-limits"]["message_bytes"] == 16 * 1024 * 1024
        assert "events.publish" in made["operations"]
        foul = api.tcp.get("/tenants/acme/asyncapi.json", headers={"Host": "a b<script>"})
        assert "script" not in foul.text
        api.app.state.services.info = {"server": {"public_url": "https://ops.example.com/t"}}
        server = api.tcp.get("/tenants/acme/asyncapi.json").json()["servers"]["api"]
        assert (server["protocol"], server["host"]) == ("https", "ops.example.com")
        assert server["pathname"] == "/t"
