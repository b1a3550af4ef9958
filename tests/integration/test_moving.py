"""Moving from one kind of broker to another: what is kept of messages, and what can't go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tenantry.broker.dead_letter_table import TableBrowser
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.moving import IggySource
from tenantry.broker.moving import Move, Moved, Source
from tenantry.broker.port import BrokerUnavailableError, Outgoing, TenantTopology
from tenantry.broker.postgres.moving import EmbeddedSource
from tenantry.database.pool import Database
from tests import brokers
from tests.brokers import Broker, RecordingSink
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def embedded(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as made:
        yield made


@contextmanager
def iggy_source(url: str, database: Database) -> Iterator[tuple[Broker, Source]]:
    """An Iggy server with readers that know nothing of those before them."""
    with brokers.iggy(url, database) as made:
        assert isinstance(made.administration, IggyAdministration)
        assert isinstance(made.consuming, IggyConsuming)
        yield made, IggySource(database, made.administration, made.consuming)


@pytest.fixture
def tenant(database: Database) -> TenantTopology:
    """A tenant that the read model knows, with one topic in order."""
    made = TenantTopology(
        tenant_id=f"moving-{id(database) % 10**8}",
        topics=("events", "steps"),
        partitions=2,
        topic_partitions=(2, 1),
        ordered=("steps",),
    )
    state = {
        "topics": made.topics,
        "partitions": made.partitions,
        "topic_partitions": made.topic_partitions,
        "ordered": made.ordered,
    }
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO tenantry.tenants (id, version, lifecycle, state, created_at, updated_at)"
            " VALUES (%s, 1, 'active', %s, now(), now())",
            [made.tenant_id, json.dumps(state)],
        )
    return made


@contextmanager
def gone_afterwards(tenant: TenantTopology, *everywhere: Broker) -> Iterator[None]:
    try:
        yield
    finally:
        for broker in everywhere:
            broker.administration.remove_user(tenant.tenant_id)
            broker.administration.remove_topology(tenant.tenant_id)


def move(database: Database, source: Source, target: Broker) -> Mapping[str, Moved]:
    return Move(
        database, source, administration=target.administration, publishing=target.publishing
    ).run()


def message(tenant: TenantTopology, key: str, body: bytes, **more: Any) -> Outgoing:
    return Outgoing(
        exchange=tenant.exchange,
        routing_key=key,
        body=body,
        message_id=more.pop("id", f"{key}:{body.decode()}"),
        content_type="text/plain",
        headers=more or None,
    )


def reject_all(broker: Broker, tenant: TenantTopology, count: int) -> None:
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    tags = [one.tag for one in sink.received(count)]
    subscription.settle(sink.heard("consuming"), rejects=tags)
    eventually(
        lambda: broker.queues.queue_counts()[tenant.tenant_id].dead_letters == count,
        what="dead letters",
    )
    subscription.close()


def test_what_iggy_does_not_take_stays_and_holds_up_only_its_own_partition_in_order(
    database: Database, embedded: Broker, iggy: str, tenant: TenantTopology
) -> None:
    embedded.administration.ensure_topology(tenant)
    bodies = (b"1", b"", b"3")
    embedded.publishing.publish(
        [message(tenant, key, body) for key in ("events.1", "steps.0") for body in bodies],
        timeout=DEADLINE,
    )
    with brokers.iggy(iggy, database) as target, gone_afterwards(tenant, target):
        with EmbeddedSource.opened(database) as source:
            moved = move(database, source, target)
        assert moved == {tenant.tenant_id: Moved(messages=3, dead_letters=0, left=3)}
        assert target.ready(f"{tenant.exchange}.events.1") == [b"1", b"3"]
        assert target.ready(f"{tenant.exchange}.steps.0") == [b"1"]
    assert embedded.ready(f"{tenant.exchange}.events.1") == [b""]
    assert embedded.ready(f"{tenant.exchange}.steps.0") == [b"", b"3"]


def test_a_dead_letter_whose_move_to_iggy_broke_off_is_there_once(
    database: Database,
    embedded: Broker,
    iggy: str,
    tenant: TenantTopology,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded.administration.ensure_topology(tenant)
    twice = message(tenant, "events.1", b"", id="same", n=2**40, list=[1, {"a": None}])
    embedded.publishing.publish([twice, twice], timeout=DEADLINE)
    reject_all(embedded, tenant, 2)

    def breaks_off(*_: object) -> None:
        raise BrokerUnavailableError("away")

    with brokers.iggy(iggy, database) as target, gone_afterwards(tenant, target):
        with monkeypatch.context() as patch, EmbeddedSource.opened(database) as source:
            patch.setattr(TableBrowser, "remove", breaks_off)
            with pytest.raises(BrokerUnavailableError):
                move(database, source, target)
        with EmbeddedSource.opened(database) as source:
            moved = move(database, source, target)
        assert moved == {tenant.tenant_id: Moved(messages=0, dead_letters=2, left=0)}
        assert target.dead_letters is not None
        with target.dead_letters.browse(tenant.tenant_id) as browser:
            found = [one.message for one in browser.next(10)]
    assert [(one.id, one.topic, one.partition, one.body) for one in found] == [
        ("same", "events", 1, b"")
    ] * 2
    assert all(one.headers == {"n": 2**40, "list": [1, {"a": None}]} for one in found)


@pytest.mark.parametrize("kind", ["postgres", "rabbitmq-classic"])
def test_what_lies_on_iggy_goes_over_in_order_and_once(
    database: Database, iggy: str, tenant: TenantTopology, kind: str, request: pytest.FixtureRequest
) -> None:
    services = map(request.getfixturevalue, brokers.KINDS[kind].services)
    sent = [b"%d" % n for n in range(1500)]
    with (
        brokers.KINDS[kind].run(*services) as target,
        iggy_source(iggy, database) as (broker, source),
        gone_afterwards(tenant, broker, target),
    ):
        broker.administration.ensure_topology(tenant)
        broker.publish(tenant, "events.1", b"bad")
        reject_all(broker, tenant, 1)
        broker.publish(tenant, "steps.0", *sent)
        broker.publishing.publish(
            [message(tenant, "default", b"first", kind="k", deep={"x": [1.5]})], timeout=DEADLINE
        )
        moved = move(database, source, target)
        assert moved == {tenant.tenant_id: Moved(messages=1501, dead_letters=1, left=0)}
        sink = RecordingSink()
        subscription = target.consuming.subscribe(tenant.queues(), prefetch=2000, sink=sink)
        found = [one.message for one in sink.received(1501)]
        assert [one.body for one in found if one.topic == "steps"] == sent
        assert [one.id for one in found if one.topic == "steps"] == [one.decode() for one in sent]
        (first,) = [one for one in found if one.topic == "default"]
        assert (first.id, first.content_type) == ("default:first", "text/plain")
        headers = dict(first.headers or {})
        assert headers.pop("timestamp_in_ms") == first.published_at_ms
        assert headers == {"kind": "k", "deep": {"x": [1.5]}}
        subscription.settle(sink.heard("consuming"), ack_up_to=1501)
        subscription.close()
        assert target.dead_letters is not None
        with target.dead_letters.browse(tenant.tenant_id) as browser:
            (letter,) = (one.message for one in browser.next(10))
        assert (letter.id, letter.topic, letter.partition) == ("bad", "events", 1)
        # Who comes later finds what has come later.
        broker.publish(tenant, "events.0", b"late")
        with iggy_source(iggy, database) as (_, anew):
            moved = move(database, anew, target)
        assert moved == {tenant.tenant_id: Moved(messages=1, dead_letters=0, left=0)}


def test_where_a_daemon_may_run_its_partitions_are_not_taken_from_it(
    database: Database, iggy: str, tenant: TenantTopology, embedded: Broker
) -> None:
    with iggy_source(iggy, database) as (daemon, _), gone_afterwards(tenant, daemon):
        daemon.administration.ensure_topology(tenant)
        sink = RecordingSink()
        subscription = daemon.consuming.subscribe(tenant.queues(), prefetch=1, sink=sink)
        daemon.publish(tenant, "default", b"1", b"2")
        sink.received(1)
        consuming = IggyConsuming(daemon.sessions.access, database, alone=False)  # type: ignore[union-attr]
        assert isinstance(daemon.administration, IggyAdministration)
        with brokers.running(consuming):
            source = IggySource(database, daemon.administration, consuming)
            with pytest.raises(BrokerUnavailableError, match="is a daemon running"):
                move(database, source, embedded)
        subscription.close()
    embedded.administration.remove_user(tenant.tenant_id)
