"""What tenants send in SQL: each message stands for itself, and memory is bounded in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.broker.budget import OVERHEAD, OWN, Budget
from tenantry.broker.port import Outgoing, Subscription, TenantTopology
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import PostgresSubscription
from tenantry.database.pool import Database
from tenantry.dead_letters.port import RejectedMessage
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.domain import names
from tenantry.messages.port import Incoming, StoreResult
from tenantry.messages.postgres import PostgresMessageStore
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.depth import examples
from tests.waiting import DEADLINE, eventually

FAR = "1" * 400
"""A whole number that fits no binary one."""

PUT = """
INSERT INTO tenantry.queued (segment, queue, seq, published_at_ms, id, content_type, headers, body)
SELECT (SELECT segment FROM tenantry.current_segment), q.id, nextval('tenantry.queued_seq'), 0,
       %(id)s, 'text/plain', %(headers)s::jsonb, convert_to(%(body)s, 'UTF8')
FROM tenantry.queues AS q WHERE q.name = %(queue)s
"""
"""How a message lay in its queue before the door had limits."""

ENQUEUE = """
SELECT tenantry.enqueue(%(stream)s, ARRAY['default'], ARRAY[%(id)s::text],
    ARRAY[convert_to(%(body)s, 'UTF8')], ARRAY[%(type)s::text], ARRAY[%(headers)s::jsonb],
    ARRAY[%(at)s::bigint])
"""


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


def subscribed(broker: Broker, tenant: TenantTopology) -> tuple[Subscription, RecordingSink]:
    sink = RecordingSink()
    return broker.consuming.subscribe(tenant.queues(), prefetch=1000, sink=sink), sink


def left_behind(
    database: Database, tenant: TenantTopology, body: str, *, headers: str | None, name: str = "m"
) -> None:
    with database.connection() as connection:
        queue = names.queue_name(tenant.tenant_id)
        connection.execute(PUT, {"id": name, "headers": headers, "body": body, "queue": queue})


def enqueue(
    connection: psycopg.Connection,
    tenant: TenantTopology,
    body: str,
    *,
    name: str | None = None,
    content_type: str | None = "text/plain",
    headers: str | None = None,
    at: int = 0,
) -> None:
    parameters = {
        "stream": names.exchange_name(tenant.tenant_id),
        "id": name,
        "body": body,
        "type": content_type,
        "headers": headers,
        "at": at,
    }
    connection.execute(ENQUEUE, parameters)


def stored(store: PostgresMessageStore, tenant: TenantTopology, sink: RecordingSink) -> StoreResult:
    store.create_partition(tenant.tenant_id)
    return store.store(tenant.tenant_id, [one.message for _, one in sink.got])


def test_headers_with_a_number_that_python_can_not_read_stop_no_neighbour_and_are_stored_as_given(
    broker: Broker, database: Database
) -> None:
    ours, theirs = broker.tenant(), broker.tenant()
    with database.connection() as connection:
        enqueue(connection, theirs, "far", headers=f'{{"a": {FAR}, "b": 1.50}}')
    _, their_sink = subscribed(broker, theirs)
    _, our_sink = subscribed(broker, ours)
    their_sink.received(1)
    broker.publish(ours, "default", b"ours")
    assert bodies(our_sink.received(1)) == [b"ours"]
    store = PostgresMessageStore(database)
    assert stored(store, theirs, their_sink).stored == 1
    (row,) = store.page(theirs.tenant_id)
    assert row.headers == f'{{"a": {FAR}, "b": 1.50}}'


def test_what_lay_in_a_queue_before_there_were_limits_is_a_dead_letter_and_its_neighbours_are_rows(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    beyond = {
        "list": "[1]",
        "deep": '{"a":' * 300 + "1" + "}" * 300,
        "large": json.dumps({"a": "x" * 70_000}),
        "long": '{"a": 1e131071}',
    }
    for name, headers in beyond.items():
        left_behind(database, tenant, name, headers=headers, name=name)
    left_behind(database, tenant, "id", headers=None, name="ä" * 3_000)
    left_behind(database, tenant, "good", headers='{"a": "b"}', name="good")
    _, sink = subscribed(broker, tenant)
    batch = [one.message for one in sink.received(len(beyond) + 2)]
    result = stored(PostgresMessageStore(database), tenant, sink)
    assert result.stored == 1
    assert {batch[one.index].body.decode(): one.reason for one in result.unstorable} == {
        "list": "unreadable",
        "deep": "headers_too_deep",
        "large": "headers_too_large",
        "long": "headers_too_large",
        "id": "id_too_long",
    }
    judged = [
        RejectedMessage(batch[one.index], one.reason, one.error, 1) for one in result.unstorable
    ]
    index = PostgresDeadLetterIndex(database)
    index.add(tenant.tenant_id, judged)
    letters, _ = index.page(tenant.tenant_id)
    assert len(letters) == 5
    assert max(len(one.message_id or "") for one in letters) < 1100


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"name": "i" * 256}, "an id is longer than 255 bytes"),
    ({"content_type": "t" * 256}, "a content type is longer than 255 bytes"),
    ({"headers": "[]"}, "headers must be a JSON object"),
    ({"headers": '"a"'}, "headers must be a JSON object"),
    ({"headers": json.dumps({"a": "x" * 65_536})}, "headers are larger than 64 KiB"),
    ({"headers": '{"a": 1e131071}'}, "headers are larger than 64 KiB"),
    ({"headers": '{"a":' * 33 + "1" + "}" * 33}, "headers have more than 32 levels"),
    ({"headers": '{"a":' + "[" * 40 + "]" * 40 + "}"}, "headers have more than 32 levels"),
]


def test_what_a_message_may_not_carry_is_refused_in_the_producers_own_transaction(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    with database.connection() as connection:
        for refused, word in REFUSED:
            with pytest.raises(psycopg.errors.ProgramLimitExceeded, match=word):
                enqueue(connection, tenant, "no", **refused)  # type: ignore[arg-type]
        enqueue(connection, tenant, "deep", headers='{"a":' * 32 + "1" + "}" * 32, name="i" * 255)
        enqueue(connection, tenant, "large", headers=json.dumps({"a": "x" * 65_000}))
    _, sink = subscribed(broker, tenant)
    assert bodies(sink.received(2)) == [b"deep", b"large"]
    assert stored(PostgresMessageStore(database), tenant, sink).stored == 2


def test_an_empty_id_is_no_id(broker: Broker, database: Database) -> None:
    tenant = broker.tenant()
    with database.connection() as connection:
        for number in range(3):
            enqueue(connection, tenant, f"{number}", name="")
    left_behind(database, tenant, "old", headers=None, name="")
    _, sink = subscribed(broker, tenant)
    assert [one.message.id for one in sink.received(4)] == [None] * 4
    store = PostgresMessageStore(database)
    assert stored(store, tenant, sink).stored == 4
    assert all(row.id for row in store.page(tenant.tenant_id))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
numbers = st.sampled_from(
    [FAR, "1e400", "-1e-400", "0", "-0.0", "1" * 5_000, "1e131071", "9007199254740993", "0.1"]
)
values = st.recursive(
    st.one_of(texts.map(json.dumps), numbers, st.sampled_from(["null", "true", "[]", "{}"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(texts.map(json.dumps), inner, max_size=4).map(
            lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs.items()) + "}"
        ),
        inner.map(lambda value: "[" * 40 + value + "]" * 40),
    ),
    max_leaves=12,
)


@settings(max_examples=examples(40, 1000), suppress_health_check=list(HealthCheck))
@given(
    headers=st.one_of(st.none(), values, values.map(lambda value: f'{{"h": {value}}}')),
    name=st.one_of(st.none(), texts),
    content_type=st.one_of(st.none(), texts),
    body=texts,
    at=st.integers(-(2**63), 2**63 - 1),
)
def test_whatever_is_sent_in_sql_is_refused_there_or_stored_or_a_dead_letter_of_its_own(
    fuzzed: Fuzzed,
    headers: str | None,
    name: str | None,
    content_type: str | None,
    body: str,
    at: int,
) -> None:
    with fuzzed.database.connection() as connection:
        try:
            enqueue(
                connection,
                fuzzed.tenant,
                body,
                name=name,
                content_type=content_type,
                headers=headers,
                at=at,
            )
        except (psycopg.DataError, psycopg.errors.ProgramLimitExceeded):
            return
    message = fuzzed.read()
    result = PostgresMessageStore(fuzzed.database).store(fuzzed.tenant.tenant_id, [message])
    assert result.stored + result.duplicates + len(result.unstorable) == 1
    judged = [RejectedMessage(message, one.reason, one.error, 1) for one in result.unstorable]
    PostgresDeadLetterIndex(fuzzed.database).add(fuzzed.tenant.tenant_id, judged)


class NoReader:
    """Stands behind a channel whose reader is the test itself: no thread, and nothing at random."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Fuzzed:
    """A tenant's queue, and who reads it as the embedded broker's reader does."""

    def __init__(self, database: Database, connection: psycopg.Connection) -> None:
        self.database = database
        self.tenant = TenantTopology(tenant_id="acme", topics=(), partitions=1)
        PostgresAdministration(database, installation="test", in_hand=dict).ensure_topology(
            self.tenant
        )
        PostgresMessageStore(database).create_partition("acme")
        self.sink = RecordingSink()
        self.link = QueueSession(connection)
        self.link.begin()
        queues = self.tenant.queues()
        self.channel = PostgresSubscription(
            NoReader(), queues, prefetch=5_000, sink=self.sink, budget=Budget()
        )
        self.readings = self.link.acquire(queues, 5_000).readings
        self.channel.opened(self.readings)

    def read(self) -> Incoming:
        """Read the message that has been put in."""
        before = len(self.sink.got)
        self.channel.deliver(self.link.fetch(self.readings, self.channel.in_hand(self.readings)))
        assert len(self.sink.got) == before + 1
        return self.sink.got[-1][1].message


@pytest.fixture
def fuzzed(database: Database, database_url: str) -> Iterator[Fuzzed]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield Fuzzed(database, connection)


# Bytes.

SIZE = 100_000


def publish(broker: Broker, tenant: TenantTopology, *sizes: int) -> None:
    broker.publishing.publish(
        [
            Outgoing(
                exchange=names.exchange_name(tenant.tenant_id),
                routing_key="default",
                body=b"x" * size,
            )
            for size in sizes
        ],
        timeout=DEADLINE,
    )


def test_large_messages_come_by_bytes_and_on_when_some_are_settled(database: Database) -> None:
    budget = Budget(each=4 * SIZE, total=40 * SIZE)
    with brokers.postgres(database, budget) as broker:
        tenant, other = broker.tenant(), broker.tenant()
        publish(broker, tenant, *[SIZE] * 20)
        subscription, sink = subscribed(broker, tenant)
        _, other_sink = subscribed(broker, other)
        generation = sink.heard("consuming")
        settled = rounds = 0
        while settled < 20:
            sink.received(settled + 1)
            # Whatever else is read comes after what was to be read of this one.
            publish(broker, other, 1)
            rounds += 1
            other_sink.received(rounds)
            assert len(sink.got) - settled <= 5
            settled = len(sink.got)
            subscription.settle(generation, ack_up_to=settled)
        eventually(lambda: budget.in_hand == rounds * (OVERHEAD + 1), what="all is settled")


def test_who_holds_all_there_is_stops_no_neighbour_with_little(database: Database) -> None:
    budget = Budget(each=8 * OWN, total=8 * OWN)
    with ExitStack() as stack:
        broker = stack.enter_context(brokers.postgres(database, budget))
        hog, ours = broker.tenant(), broker.tenant()
        publish(broker, hog, *[OWN] * 12)
        subscription, hog_sink = subscribed(broker, hog)
        hog_sink.received(8)
        publish(broker, ours, *[1000] * 50, OWN + 1, 1)
        _, our_sink = subscribed(broker, ours)
        assert {len(one.message.body) for one in our_sink.received(50)} == {1000}
        assert len(hog_sink.got) <= 9
        # What is large waits until there is room.
        subscription.settle(hog_sink.heard("consuming"), ack_up_to=len(hog_sink.got))
        assert len(our_sink.received(52)) == 52
