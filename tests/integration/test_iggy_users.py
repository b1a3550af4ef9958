"""What tenants have on Apache Iggy, and whose it is: users, rights, topics, marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_iggy as iggy_client
import pytest
from apache_iggy import SendMessage

from tenantry.broker import drift
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.client import Access, RefusedError, Session
from tenantry.broker.iggy.topology import consumer_name, former_name
from tenantry.broker.port import BrokerError, NotOursError
from tenantry.broker.survey import DriftKind
from tenantry.database.pool import Database
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.iggy_tenants import Provisioned, opens


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
    # A user's number is given to another, once it is free: the former's stays taken.
    for _ in range(3):
        tenant.rotate()
        with pytest.raises(BrokerError):
            former.call(send)
    former.close()
    assert root.call(lambda client: client.get_user(former_name(tenant.id))) is None
    assert tenant.drift() == set()


def test_a_deleted_tenants_open_session_does_nothing_as_any_tenant_that_comes_after(
    broker: Broker,
) -> None:
    tenant = Provisioned(broker)
    former = Session(Access.of(tenant.url))
    tenant.administration.remove_user(tenant.id, tenant.hash)
    tenant.administration.remove_topology(tenant.id)
    for _ in range(3):
        stream = Provisioned(broker).topology.exchange
        with pytest.raises(BrokerError):
            former.call(
                lambda client, to=stream: client.send_messages(to, "default", 0, [SendMessage(b"")])  # type: ignore[misc]
            )
    former.close()


def test_users_that_were_retired_before_the_servers_start_are_deleted(
    broker: Broker, root: Session
) -> None:
    tenant = Provisioned(broker)
    tenant.rotate()
    root.call(lambda client: client.create_user("retired_1_1", "a-password", None, None))

    def retired() -> set[str]:
        listed = root.call(lambda client: client.get_users())
        return {one.username for one in listed if one.username.startswith("retired_")}

    before = retired()
    assert tenant.drift() == set()
    assert retired() == before - {"retired_1_1"} != set()


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
