"""Apache Iggy's adapter beyond the contract: dead letters, offsets, other members, budget."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import apache_iggy as iggy_client
import pytest
from apache_iggy import HeaderKey, HeaderValue, SendMessage

from tenantry.broker.budget import Budget
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.client import Access, Session, Sessions
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.dead_letters import DeadLetterWriter, IggyDeadLetters
from tenantry.broker.iggy.topology import GROUP, Place
from tenantry.broker.port import BrokerError, DeadLettersBusyError, Outgoing, TenantTopology
from tenantry.database.pool import Database
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker, RecordingSink, bodies
from tests.unit.test_iggy_headers import EVERY_TYPE
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def broker(iggy: str, database: Database) -> Iterator[Broker]:
    with brokers.iggy(iggy, database) as made:
        yield made


@pytest.fixture
def root(iggy: str) -> Iterator[Session]:
    """The server's administrator."""
    session = Session(Access.of(iggy))
    yield session
    session.close()


def test_a_dead_letter_keeps_every_header_and_byte_and_goes_out_as_it_came(
    broker: Broker, root: Session
) -> None:
    tenant = broker.tenant("events")
    assert broker.database is not None
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    body = bytes(range(256))
    root.call(
        lambda client: client.send_messages(
            tenant.exchange, "events", 0, [SendMessage(body, dict(EVERY_TYPE), 2**127)]
        )
    )
    (delivery,) = sink.received(1)
    subscription.settle(sink.heard("consuming"), rejects=(delivery.tag,))
    dead_letters = IggyDeadLetters(broker.database)

    def one() -> Any:
        with dead_letters.browse(tenant.tenant_id) as browser:
            found = browser.next(10)
            with (
                pytest.raises(DeadLettersBusyError),
                dead_letters.browse(tenant.tenant_id),
            ):
                pass
            return found

    (found,) = eventually(one, what="a dead letter")
    assert found.message == delivery.message
    assert found.reason == "rejected"
    broker.publishing.publish(
        [
            Outgoing(
                exchange=tenant.exchange,
                routing_key="events.0",
                body=found.message.body,
                message_id=found.message.id,
                content_type=found.message.content_type,
                headers={"x-tenantry-replay": "id"},
                properties=found.properties,
            )
        ],
        timeout=DEADLINE,
    )
    sink.received(2)
    (_, again) = root.call(
        lambda client: client.poll_messages(
            tenant.exchange,
            "events",
            consumer=iggy_client.Consumer.Single("me"),
            polling_strategy=iggy_client.PollingStrategy.First(),
            count=10,
            auto_commit=False,
        )
    )
    assert again.payload() == body
    assert again.id() == 2**127
    mark = {HeaderKey.String("x-tenantry-replay"): HeaderValue.String("id")}
    assert dict(again.user_headers() or {}) == EVERY_TYPE | mark
    with dead_letters.browse(tenant.tenant_id) as browser:
        assert len(browser.next(10)) == 1
        browser.remove([0])
    with dead_letters.browse(tenant.tenant_id) as browser:
        assert browser.next(10) == []
    assert broker.queues.queue_counts()[tenant.tenant_id].dead_letters == 0


def test_a_dead_letter_that_takes_its_time_holds_up_nobody_elses_messages(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, let = threading.Event(), threading.Event()
    write = DeadLetterWriter.write

    async def slowly(writer: DeadLetterWriter, *arguments: Any) -> None:
        began.set()
        await asyncio.to_thread(let.wait, 2 * DEADLINE)
        await write(writer, *arguments)

    monkeypatch.setattr(DeadLetterWriter, "write", slowly)
    heavy, other = broker.tenant("events"), broker.tenant("events")
    sink, others = RecordingSink(), RecordingSink()
    subscription = broker.consuming.subscribe(heavy.queues(), prefetch=10, sink=sink)
    broker.publish(heavy, "events.0", b"{no")
    (delivery,) = sink.received(1)
    subscription.settle(sink.heard("consuming"), rejects=(delivery.tag,))
    assert began.wait(DEADLINE)
    # One that is made meanwhile asks the database for its dead letters, too.
    broker.consuming.subscribe(other.queues(), prefetch=10, sink=others)
    broker.publish(other, "events.0", b"1")
    try:
        assert bodies(others.received(1)) == [b"1"]
    finally:
        let.set()
    assert broker.database is not None
    dead_letters = IggyDeadLetters(broker.database)

    def one() -> Any:
        with dead_letters.browse(heavy.tenant_id) as browser:
            return browser.next(10)

    assert eventually(one, what="the dead letter")


def test_a_large_dead_letter_is_given_the_time_that_it_takes(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left is what its size gives it.
    monkeypatch.setattr("tenantry.broker.iggy.dead_letters.DATABASE_TIMEOUT", 0.0)
    monkeypatch.setattr("tenantry.broker.iggy.dead_letters.SLOWEST", 100_000)
    assert broker.database is not None
    place = Place("tenant_large_stream", "events", 0)
    partition = SimpleNamespace(place=place, made=1)
    message = SimpleNamespace(
        payload=lambda: bytes(3_000_000),
        timestamp=lambda: 1,
        origin_timestamp=lambda: 1,
        offset=lambda: 7,
        id=lambda: 5,
        user_headers=lambda: None,
    )
    writer = DeadLetterWriter(broker.database)

    async def written() -> None:
        await writer.write(partition, message)  # type: ignore[arg-type]
        await writer.close()

    asyncio.run(written())
    with broker.database.connection() as connection:
        row = connection.execute(
            "SELECT length(body) FROM tenantry.iggy_rejected WHERE tenant_id = 'large'"
        ).fetchone()
    assert row == (3_000_000,)


def test_after_a_crash_what_was_rejected_beyond_the_offset_does_not_come_again(
    broker: Broker, iggy: str, database: Database
) -> None:
    tenant = broker.tenant()
    broker.publish(tenant, "default", b"1", b"bad", b"3", b"gone")
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    sink.received(4)
    subscription.settle(sink.heard("consuming"), rejects=(2, 4))
    dead = names.dead_letter_queue_name(tenant.tenant_id)
    eventually(lambda: broker.ready(dead) == [b"bad", b"gone"], what="two dead letters")
    with IggyDeadLetters(database).browse(tenant.tenant_id) as browser:
        browser.next(10)
        browser.remove([1])
    subscription.close()
    # Another process: it has what the server and the database know.
    with brokers.iggy(iggy, database) as after:
        second = RecordingSink()
        after.consuming.subscribe(tenant.queues(), prefetch=10, sink=second)
        again = second.received(2)
        assert bodies(again) == [b"1", b"3"]
        assert all(one.redelivered for one in again)
        broker.publish(tenant, "default", b"5")
        assert bodies(second.received(3))[2:] == [b"5"]
        assert broker.ready(dead) == [b"bad"]


def test_a_daemon_takes_over_from_a_member_that_is_not_heard_of(
    broker: Broker, iggy: str, database: Database
) -> None:
    tenant = broker.tenant("events", partitions=4)
    sink = RecordingSink()
    frozen = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    for number in range(4):
        broker.publish(tenant, f"events.{number}", b"a%d" % number, b"b%d" % number)
    first = sink.received(8)
    done = [one.tag for one in first if one.message.body.startswith(b"a")]
    frozen.settle(sink.heard("consuming"), acks=done)
    eventually(lambda: _pending(broker, tenant) == 4, what="offsets are stored")
    with brokers.iggy(iggy, database) as after:
        second = RecordingSink()
        after.consuming.subscribe(tenant.queues(), prefetch=100, sink=second)
        assert sorted(bodies(second.received(4))) == [b"b0", b"b1", b"b2", b"b3"]
        generation = second.heard("consuming")
        # What the former says now is not heard any more.
        frozen.settle(sink.heard("consuming"), ack_up_to=8)
        assert generation == second.heard("consuming")
    assert sink.missing in ([], [False])


def _pending(broker: Broker, tenant: TenantTopology) -> int:
    counts = broker.queues.queue_counts()[tenant.tenant_id]
    return counts.ready + counts.unsettled


def test_a_topic_that_was_purged_is_read_from_its_beginning(broker: Broker, root: Session) -> None:
    tenant = broker.tenant()
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    broker.publish(tenant, "default", b"1", b"2", b"3")
    sink.received(3)
    subscription.settle(sink.heard("consuming"), ack_up_to=3)
    eventually(lambda: _pending(broker, tenant) == 0, what="all is stored")
    root.call(lambda client: client.purge_topic(tenant.exchange, "default"))
    broker.publish(tenant, "default", b"4")
    assert bodies(sink.received(4))[3:] == [b"4"]


def test_no_more_bytes_are_in_hand_than_the_budget_allows(iggy: str, database: Database) -> None:
    budget = Budget(each=100_000, total=200_000)
    with brokers.iggy(iggy, database, budget) as broker:
        tenant = broker.tenant()
        large = [b"%02d" % n + b"x" * 30_000 for n in range(12)]
        broker.publishing.publish(
            [Outgoing(exchange=tenant.exchange, routing_key="default", body=one) for one in large],
            timeout=DEADLINE,
        )
        sink = RecordingSink()
        subscription = broker.consuming.subscribe(tenant.queues(), prefetch=1000, sink=sink)
        taken = 0
        while taken < 12:
            sink.received(taken + 1)
            assert len(sink.got) - taken <= 9  # what is a tenant's own may be passed by one
            taken = len(sink.got)
            subscription.settle(sink.heard("consuming"), ack_up_to=taken)
        assert bodies([one for _, one in sink.got]) == large


def test_the_group_is_the_daemons_alone(broker: Broker, root: Session) -> None:
    tenant = broker.tenant()
    sink = RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    sink.heard("consuming")
    group = root.call(lambda client: client.get_consumer_group(tenant.exchange, "default", GROUP))
    assert group is not None
    assert group.members_count == 1


def test_a_server_that_is_not_there_is_waited_for(database: Database) -> None:
    access = Access.of("iggy://u:p@127.0.0.1:1")
    with pytest.raises(BrokerError, match=r"can't be reached at 127\.0\.0\.1:1:"):
        IggyAdministration(Sessions(access), database, installation="x").check()
    consuming = IggyConsuming(access, database)
    with brokers.running(consuming):
        sink = RecordingSink()
        subscription = consuming.subscribe((), prefetch=1, sink=sink)
        subscription.cancel()
        eventually(lambda: sink.log == [("cancelled", 0)], what="cancelled")
        assert not consuming.connected


def test_the_list_of_streams_is_read_as_the_library_reads_it(broker: Broker, root: Session) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"1", b"2")
    answer = root.call(lambda client: client.send_binary_request(wire.GET_STREAMS, b""))
    found = wire.read_streams(answer)
    assert found[tenant.exchange][0] == 2
    listed = root.call(lambda client: client.get_streams())
    ours = [one for one in listed if one.name == tenant.exchange]
    assert [found[one.name] for one in ours] == [(one.messages_count, one.size) for one in ours]
    assert found.keys() >= {one.name for one in ours}


def test_an_offset_that_a_tenants_consumer_stores_under_the_daemons_name_passes_nothing_over(
    broker: Broker, root: Session
) -> None:
    tenant = broker.tenant("events")
    for number in range(3):
        broker.publish(tenant, "events", str(number).encode())
    forged = wire.store_offset(GROUP, Place(tenant.exchange, "events", 0), 2, alone=True)
    root.call(lambda client: client.send_binary_request(wire.STORE_OFFSET, forged))
    sink = RecordingSink()
    broker.consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
    assert bodies(sink.received(3)) == [b"0", b"1", b"2"]


ASKS_AND_ENDS = """
import sys, threading
from tenantry.broker.iggy.client import Access
from tenantry.broker.iggy.client import Session

def ask():
    session = Session(Access.of(sys.argv[1]))
    for _ in range(20):
        session.call(lambda client: client.get_streams())
    session.close()

threads = [threading.Thread(target=ask) for _ in range(6)]
[one.start() for one in threads]
[one.join() for one in threads]
"""


def test_a_process_that_has_used_the_library_ends_with_its_own_exit_code(iggy: str) -> None:
    # Without a moment for the library's threads about one in ten is aborted.
    command = [sys.executable, "-c", ASKS_AND_ENDS, iggy]
    for _ in range(5):
        some = [subprocess.Popen(command) for _ in range(3)]
        assert [one.wait(DEADLINE) for one in some] == [0, 0, 0]
