"""Apache Iggy's adapter beyond the contract: users, marks, dead letters, offsets, other members."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import apache_iggy as iggy_client
import pytest
from apache_iggy import HeaderKey, HeaderValue, SendMessage

from tenantry.broker import drift
from tenantry.broker.budget import Budget
from tenantry.broker.iggy import wire
from tenantry.broker.iggy.access import Access
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.client import RefusedError, Session, Sessions
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.dead_letters import IggyDeadLetters
from tenantry.broker.iggy.topology import GROUP, consumer_name, former_name
from tenantry.broker.password_hashes import PostgresPasswordHashes
from tenantry.broker.port import (
    BrokerError,
    DeadLettersBusyError,
    NotOursError,
    Outgoing,
    PasswordHash,
    TenantTopology,
)
from tenantry.broker.survey import DriftKind
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


class Provisioned:
    """A tenant with a user, as the provisioner makes one."""

    def __init__(self, broker: Broker, *topics: str, length: int = 20) -> None:
        assert broker.database is not None
        self.hashes = PostgresPasswordHashes(broker.database)
        self.administration = broker.administration
        tenant_id = f"t{uuid.uuid4().hex}".ljust(length, "x")[:length]
        made = TenantTopology(tenant_id=tenant_id, topics=topics, partitions=2)
        self.topology, self.id = made, made.tenant_id
        self.administration.claim(self.id)
        self.administration.ensure_topology(made)
        self.url, self.hash = self.rotate()

    def rotate(self, *, confirm: bool = True) -> tuple[str, PasswordHash]:
        credentials, value = self.administration.new_credentials(self.id)
        self.hashes.propose(self.id, value)
        self.administration.ensure_user(self.id, value)
        if confirm:
            self.hashes.confirm(self.id)
            self.administration.end_sessions(self.id)
        return credentials.iggy_url, value

    def drift(self) -> set[DriftKind]:
        survey = self.administration.survey()
        found = drift.differences(self.topology, self.hashes.load(self.id), survey, consuming=False)
        return {one.kind for one in found}


def opens(url: str) -> bool:
    try:
        Session(Access.of(url)).close()
    except RefusedError:
        return False
    return True


def test_a_change_of_the_password_that_is_not_confirmed_is_taken_back(broker: Broker) -> None:
    tenant = Provisioned(broker)
    pending, _ = tenant.rotate(confirm=False)
    assert opens(pending)
    assert not opens(tenant.url)
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    assert opens(tenant.url)
    assert not opens(pending)
    # Twice, one after the other: the confirmed one is what there is a way back to.
    tenant.rotate(confirm=False)
    tenant.rotate(confirm=False)
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    assert opens(tenant.url)
    assert tenant.drift() == set()


def test_a_confirmed_password_leaves_nothing_of_the_former(broker: Broker, root: Session) -> None:
    tenant = Provisioned(broker)
    former = Session(Access.of(tenant.url))
    send = lambda client: client.send_messages(  # noqa: E731
        tenant.topology.exchange, "default", 0, [SendMessage(b"1")]
    )
    former.call(send)
    url, _ = tenant.rotate()
    assert opens(url)
    assert not opens(tenant.url)
    with pytest.raises(BrokerError):
        former.call(send)
    former.close()
    assert root.call(lambda client: client.get_user(former_name(tenant.id))) is None
    assert tenant.drift() == set()


def test_a_lost_user_is_made_again_and_its_password_is_told_to_be_lost(
    broker: Broker, root: Session
) -> None:
    tenant = Provisioned(broker)
    root.call(lambda client: client.delete_user(names.username(tenant.id)))
    assert tenant.drift() == {DriftKind.USER}
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    assert tenant.drift() == {DriftKind.LOST_PASSWORD}
    assert not opens(tenant.url)
    url, _ = tenant.rotate()
    assert opens(url)
    assert tenant.drift() == set()


def test_a_user_of_the_name_that_somebody_else_made_does_not_keep_its_password(
    broker: Broker, root: Session
) -> None:
    tenant = Provisioned(broker)
    name = names.username(tenant.id)
    root.call(lambda client: client.delete_user(name))
    root.call(lambda client: client.create_user(name, "somebody-elses"))
    assert DriftKind.PASSWORD in tenant.drift()
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    access = broker.sessions.access if broker.sessions else None
    assert access is not None
    assert not opens(access.url_for(name, "somebody-elses"))
    assert tenant.drift() == {DriftKind.LOST_PASSWORD}


@pytest.mark.parametrize(
    "permissions",
    [
        None,
        iggy_client.Permissions(iggy_client.GlobalPermissions(poll_messages=True)),
        iggy_client.Permissions(iggy_client.GlobalPermissions(manage_streams=True)),
    ],
)
def test_rights_that_are_too_wide_or_gone_are_seen_and_repaired(
    broker: Broker, root: Session, permissions: Any
) -> None:
    tenant = Provisioned(broker)
    for name in (names.username(tenant.id), consumer_name(tenant.id)):
        root.call(lambda client, name=name: client.update_permissions(name, permissions))  # type: ignore[misc]
        assert tenant.drift()
        tenant.administration.ensure_user(tenant.id, tenant.hash)
        assert tenant.drift() == set()
    assert opens(tenant.url)


def test_topics_and_partitions_that_are_missing_are_seen_and_made_again(
    broker: Broker, root: Session
) -> None:
    tenant = Provisioned(broker, "events")
    stream = tenant.topology.exchange
    root.call(lambda client: client.delete_partitions(stream, "events", 1))
    assert DriftKind.QUEUE in tenant.drift()
    tenant.administration.ensure_topology(tenant.topology)
    assert tenant.drift() == set()
    root.call(lambda client: client.delete_topic(stream, "events"))
    root.call(lambda client: client.delete_topic(stream, "default"))
    tenant.administration.ensure_topology(tenant.topology)
    assert tenant.drift() == set()
    # With another number, so that users' rights lead nowhere.
    root.call(lambda client: client.delete_stream(stream))
    root.call(lambda client: client.create_stream(f"{tenant.id}-between"))
    tenant.administration.ensure_topology(tenant.topology)
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    assert tenant.drift() == set()
    root.call(lambda client: client.delete_stream(f"{tenant.id}-between"))


def test_another_installations_tenant_is_not_touched(broker: Broker, database: Database) -> None:
    tenant = Provisioned(broker)
    assert broker.sessions is not None
    other = IggyAdministration(broker.sessions, database, installation="other")
    database_of_the_other = other._passwords
    database_of_the_other.remove(tenant.id)  # as a database of its own would have it
    for refused in (other.check_owner, other.claim):
        with pytest.raises(NotOursError, match="installation test"):
            refused(tenant.id)
    other.remove_user(tenant.id)
    assert opens(tenant.url)
    assert tenant.id not in drift.owners(other.survey())


def test_a_stream_that_nobody_here_made_is_not_taken(broker: Broker, root: Session) -> None:
    stream = names.exchange_name("foreign1")
    root.call(lambda client: client.create_stream(stream))
    try:
        broker.administration.check_owner("foreign1")  # empty: it is to be had
        assert broker.sessions is not None
        IggyAdministration(broker.sessions, broker.database, installation="x")._ensure_topic(  # type: ignore[arg-type]
            root, stream, "orders", 1, None
        )
        with pytest.raises(NotOursError, match="carries no installation's mark"):
            broker.administration.claim("foreign1")
    finally:
        root.call(lambda client: client.delete_stream(stream))


@pytest.mark.parametrize("length", [34, 35, 40])
def test_a_tenant_with_a_long_id_has_users_with_names_that_iggy_takes(
    broker: Broker, root: Session, length: int
) -> None:
    tenant = Provisioned(broker, length=length)
    assert opens(tenant.url)
    assert tenant.drift() == set()
    (url, _), former = tenant.rotate(), tenant.url
    assert opens(url)
    assert not opens(former)
    broker.publish(tenant.topology, "default", b"1")
    broker.administration.remove_user(tenant.id)
    assert not opens(url)
    users = root.call(lambda client: client.get_users())
    assert not [one for one in users if tenant.id[:17] in one.username]
    broker.administration.remove_topology(tenant.id)


def test_the_reading_user_reads_its_own_stream_alone(broker: Broker, root: Session) -> None:
    tenant, other = Provisioned(broker), Provisioned(broker)
    name = consumer_name(tenant.id)
    access = broker.sessions.access if broker.sessions else None
    assert access is not None
    found = root.call(lambda client: client.get_user(name))
    assert found is not None
    assert found.status == iggy_client.UserStatus.Inactive
    rights = found.permissions
    root.call(lambda client: client.delete_user(name))
    root.call(lambda client: client.create_user(name, "reads-only", None, rights))
    reader = Session(Access.of(access.url_for(name, "reads-only")))

    def poll(stream: str) -> list[iggy_client.ReceiveMessage]:
        return reader.call(
            lambda client: client.poll_messages(
                stream,
                "default",
                consumer=iggy_client.Consumer.Single("me"),
                polling_strategy=iggy_client.PollingStrategy.First(),
                count=10,
                auto_commit=False,
            )
        )

    broker.publish(tenant.topology, "default", b"1")
    assert [one.payload() for one in poll(tenant.topology.exchange)] == [b"1"]
    with pytest.raises(RefusedError):
        poll(other.topology.exchange)
    with pytest.raises(RefusedError):
        reader.call(
            lambda client: client.send_messages(
                tenant.topology.exchange, "default", 0, [SendMessage(b"1")]
            )
        )
    reader.close()


def test_a_stream_that_gets_the_number_of_one_that_was_removed_is_nobody_elses(
    broker: Broker, root: Session
) -> None:
    tenant = Provisioned(broker)
    sender = Session(Access.of(tenant.url))
    number = root.call(lambda client: client.get_stream(tenant.topology.exchange)).id
    tenant.administration.remove_topology(tenant.id)
    others = [Provisioned(broker) for _ in range(3)]
    streams = [
        root.call(lambda client, one=one: client.get_stream(one.topology.exchange))
        for one in others
    ]
    heir = next((one for one in streams if one.id == number), None)
    if heir is None:
        pytest.skip("the server has given the number to none of the next three")
    with pytest.raises(RefusedError):
        sender.call(lambda client: client.send_messages(heir.id, "default", 0, [SendMessage(b"1")]))
    sender.close()
    # What the tenant had is given again with its stream.
    tenant.administration.ensure_topology(tenant.topology)
    assert DriftKind.PERMISSIONS in tenant.drift()
    tenant.administration.ensure_user(tenant.id, tenant.hash)
    assert tenant.drift() == set()


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
