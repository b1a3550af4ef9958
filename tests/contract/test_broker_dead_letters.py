"""What every broker promises of dead letters, and of probes where it has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tenantry.broker import topology as layout
from tenantry.broker.port import (
    BrokerError,
    DeadLetters,
    DeadLettersBusyError,
    Outgoing,
    Probes,
    QueuedDeadLetter,
    TenantTopology,
)
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.tenant_client.amqp import TenantClientError, TenantMessage
from tenantry.tenant_client.connecting import client_for
from tests import brokers
from tests.brokers import Broker, RecordingSink
from tests.waiting import DEADLINE, eventually

ADAPTERS = [name for name, kind in brokers.KINDS.items() if kind.adapter is not None]


@pytest.fixture(params=ADAPTERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind = brokers.KINDS[request.param]
    with kind.run(*map(request.getfixturevalue, kind.services)) as made:
        yield made


@pytest.fixture
def dead_letters(broker: Broker) -> DeadLetters:
    assert broker.dead_letters is not None
    return broker.dead_letters


@pytest.fixture
def probes(broker: Broker) -> Probes:
    if broker.probes is None:
        pytest.skip("no user can take a tenant's place on this broker")
    return broker.probes


def rejected(broker: Broker, *bodies: bytes) -> TenantTopology:
    """Make a tenant with messages that were rejected, in this order."""
    tenant = broker.tenant("events", partitions=2)
    sink = RecordingSink()
    subscription = broker.consuming.subscribe(tenant.queues(), prefetch=100, sink=sink)
    broker.publish(tenant, "events.1", *bodies)
    tags = [one.tag for one in sink.received(len(bodies))]
    subscription.settle(sink.heard("consuming"), rejects=tags)
    eventually(
        lambda: broker.queues.queue_counts()[tenant.tenant_id].dead_letters == len(bodies),
        what="they are dead letters",
    )
    subscription.close()
    return tenant


def browsed(dead_letters: DeadLetters, tenant: TenantTopology) -> list[QueuedDeadLetter]:
    with dead_letters.browse(tenant.tenant_id) as browser:
        return browser.next(100)


def test_what_was_rejected_is_given_oldest_first_with_where_it_comes_from(
    broker: Broker, dead_letters: DeadLetters
) -> None:
    tenant = rejected(broker, b"1", b"2", b"3")
    found = browsed(dead_letters, tenant)
    assert [one.message.body for one in found] == [b"1", b"2", b"3"]
    assert [one.message.id for one in found] == ["1", "2", "3"]
    assert {(one.message.topic, one.message.partition) for one in found} == {("events", 1)}
    assert {one.reason for one in found} == {"rejected"}


def test_what_is_removed_is_gone_and_the_rest_stays_as_it_was(
    broker: Broker, dead_letters: DeadLetters
) -> None:
    tenant = rejected(broker, b"1", b"2", b"3", b"4")
    with dead_letters.browse(tenant.tenant_id) as browser:
        assert len(browser.next(2)) == 2
        browser.remove([1])
        assert [one.message.body for one in browser.next(100)] == [b"3", b"4"]
        browser.remove([0])
        assert browser.next(100) == []
    assert browser.complete
    assert browser.gone
    left = [one.message.body for one in browsed(dead_letters, tenant)]
    assert sorted(left) == [b"1", b"4"]


def test_one_browser_of_a_tenant_at_a_time(broker: Broker, dead_letters: DeadLetters) -> None:
    tenant, other = rejected(broker, b"1"), broker.tenant()
    with dead_letters.browse(tenant.tenant_id):
        with pytest.raises(DeadLettersBusyError), dead_letters.browse(tenant.tenant_id):
            pass
        with dead_letters.browse(other.tenant_id) as beside:
            assert beside.next(1) == []
    assert len(browsed(dead_letters, tenant)) == 1


def test_what_is_sent_to_the_dead_letter_exchange_lies_where_it_says_that_it_died(
    broker: Broker, dead_letters: DeadLetters
) -> None:
    tenant = broker.tenant("events", partitions=2)
    marks = {
        layout.FIRST_DEATH_QUEUE: f"{tenant.exchange}.events.1",
        layout.FIRST_DEATH_NUMBER: 7,
        "timestamp_in_ms": 1_700_000_000_000,
    }
    broker.publishing.publish(
        [
            Outgoing(
                exchange=names.DEAD_LETTER_EXCHANGE,
                routing_key=tenant.tenant_id,
                body=b"{no",
                message_id="bad",
                content_type="application/json",
                headers={"kind": "k", **marks},
            )
        ],
        timeout=DEADLINE,
    )
    (found,) = (one.message for one in browsed(dead_letters, tenant))
    assert (found.id, found.topic, found.partition) == ("bad", "events", 1)
    assert (found.body, found.content_type) == (b"{no", "application/json")
    assert found.published_at_ms == 1_700_000_000_000
    assert (found.headers or {})["kind"] == "k"
    assert not set(found.headers or {}) - {"kind", "timestamp_in_ms"}


def test_a_tenant_without_a_queue_has_no_dead_letters(dead_letters: DeadLetters) -> None:
    with dead_letters.browse("nobody") as browser:
        assert browser.next(10) == []
    assert browser.complete


def provisioned(broker: Broker) -> TenantTopology:
    """Make a tenant with a user."""
    tenant = broker.tenant()
    broker.administration.claim(tenant.tenant_id)
    _, password = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, password)
    return tenant


def gets_in(url: str) -> bool:
    client = client_for(url, name="probe")
    try:
        client.open()
    except TenantClientError:
        return False
    client.close()
    return True


def sent_by(url: str, tenant: TenantTopology) -> bool:
    """Return whether the URL's user can log in and publish a message to the tenant."""
    client = client_for(url, name="probe")
    try:
        client.open()
        message = TenantMessage(routing_key="default", body=b"{}", message_id="1")
        exchange = names.exchange_name(tenant.tenant_id)
        return bool(client.publish(exchange, [message]).confirmed)
    except TenantClientError:
        return False
    finally:
        client.close()


def test_a_probe_may_what_the_tenants_user_may_for_as_long_as_it_is_there(
    broker: Broker, probes: Probes
) -> None:
    tenant, other = provisioned(broker), provisioned(broker)
    with probes.probe(tenant.tenant_id) as probe:
        url = probe.sender.url
        assert sent_by(url, tenant)
        assert not sent_by(url, other)
    assert not sent_by(url, tenant)
    assert list(probes.excess(tenant.tenant_id)) == []


def test_a_tenants_user_that_consumes_has_a_probe_too_and_that_sends_nothing(
    broker: Broker, probes: Probes
) -> None:
    tenant = provisioned(broker)
    _, password = broker.administration.new_credentials(tenant.tenant_id, UserKind.CONSUMER)
    broker.administration.ensure_user(tenant.tenant_id, password, UserKind.CONSUMER)
    with probes.probe(tenant.tenant_id) as probe:
        assert probe.reader is not None
        assert gets_in(probe.reader.url)
        assert not sent_by(probe.reader.url, tenant)
    assert not gets_in(probe.reader.url)


def test_probes_of_several_tenants_may_what_their_own_tenant_may_and_nothing_in_the_end(
    broker: Broker, probes: Probes
) -> None:
    one, two = provisioned(broker), provisioned(broker)
    urls = []
    with probes.several():
        for mine, other in ((one, two), (two, one)):
            with probes.probe(mine.tenant_id) as probe:
                urls.append(probe.sender.url)
                assert sent_by(urls[-1], mine)
                assert not sent_by(urls[-1], other)
            assert not sent_by(urls[-1], mine)
        # Another proof of the same installation, on another node, removes the probes meanwhile.
        probes.sweep()
        with probes.probe(one.tenant_id) as probe:
            urls.append(probe.sender.url)
            assert sent_by(urls[-1], one)
    assert not any(gets_in(url) for url in urls)


def test_a_probe_that_was_left_behind_is_swept_away(broker: Broker, probes: Probes) -> None:
    tenant = provisioned(broker)
    with suppress(BrokerError), probes.probe(tenant.tenant_id) as probe:
        url = probe.sender.url
        probes.sweep()
        assert not sent_by(url, tenant)
    with probes.probe(tenant.tenant_id) as another:
        assert sent_by(another.sender.url, tenant)


def test_a_tenant_without_a_user_has_no_probe(broker: Broker, probes: Probes) -> None:
    tenant = broker.tenant()
    with pytest.raises(BrokerError), probes.probe(tenant.tenant_id):
        pass
