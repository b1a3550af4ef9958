"""What RabbitMQ's administration says when it can't do its work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit, urlunsplit

import pika
import pytest
from pika import BlockingConnection

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerError, BrokerUnavailableError, TenantTopology
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.topology import QueueType
from tenantry.domain import names
from tests import brokers
from tests.services_rabbitmq import RabbitHost

NOBODY_LISTENS = "http://127.0.0.1:9"


def administration(
    host: RabbitHost, queue_type: QueueType = "quorum", fence: TermFence = UNFENCED
) -> RabbitAdministration:
    return RabbitAdministration(
        url=host.url,
        management_url=host.management_url,
        queue_type=queue_type,
        installation=brokers.INSTALLATION,
        fence=fence,
    )


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    netloc = f"{parts.username}:{password}@{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))


def complaint(host: RabbitHost) -> str:
    """Give the line with which the check fails; it never holds a password."""
    checked = administration(host)
    with pytest.raises(BrokerError) as caught:
        checked.check()
    line = str(caught.value)
    assert "\n" not in line
    for url in (host.url, host.management_url):
        assert (urlsplit(url).password or "-") not in line
    checked.close()
    return line


def test_an_absent_broker_is_said_to_be_out_of_reach(rabbitmq: RabbitHost) -> None:
    gone = replace(rabbitmq, url="amqp://a:secret@127.0.0.1:9/")
    said = "can't be reached at 127.0.0.1:9: connection refused; start it, or correct rabbitmq.url"
    assert said in complaint(gone)
    with pytest.raises(BrokerUnavailableError):
        administration(gone).check()


def test_a_wrong_password_is_named_as_such(rabbitmq: RabbitHost) -> None:
    wrong = replace(rabbitmq, url=with_password(rabbitmq.url, "wrong-one"))
    assert "refuses user name and password: check rabbitmq.url" in complaint(wrong)


def test_a_missing_virtual_host_is_named_as_such(rabbitmq: RabbitHost) -> None:
    url = urlunsplit(urlsplit(rabbitmq.url)._replace(path="/nowhere"))
    assert "no access to the virtual host 'nowhere'" in complaint(replace(rabbitmq, url=url))


def test_an_absent_management_api_is_said_not_to_answer(rabbitmq: RabbitHost) -> None:
    line = complaint(replace(rabbitmq, management_url=NOBODY_LISTENS))
    assert "management API does not answer at http://127.0.0.1:9" in line


def test_a_wrong_password_of_the_management_api_is_named_as_such(rabbitmq: RabbitHost) -> None:
    url = with_password(rabbitmq.management_url, "wrong-one")
    assert "check rabbitmq.management_url" in complaint(replace(rabbitmq, management_url=url))


def test_a_user_that_is_no_administrator_is_not_enough(rabbitmq: RabbitHost) -> None:
    ours = administration(rabbitmq)
    tenant_id = rabbitmq.vhost
    credentials, hashed = ours.new_credentials(tenant_id)
    ours.ensure_user(tenant_id, hashed)
    try:
        management = urlsplit(rabbitmq.management_url)
        netloc = f"{credentials.username}:{credentials.password}@{management.netloc.split('@')[1]}"
        theirs = replace(rabbitmq, management_url=urlunsplit(management._replace(netloc=netloc)))
        assert "administrator" in complaint(theirs)
        line = complaint(replace(rabbitmq, url=credentials.amqp_url))
        assert "lacks rights" in line
    finally:
        ours.remove_user(tenant_id)
        ours.close()


def test_queues_of_another_type_than_is_wanted_now_stay_and_new_ones_are_made_as_wanted(
    rabbitmq: RabbitHost,
) -> None:
    with brokers.rabbitmq(rabbitmq, "classic") as broker:
        tenant = broker.tenant("events")
        broker.publish(tenant, "events", b"1")
        ours = administration(rabbitmq, "quorum")
        ours.ensure_topology(replace(tenant, topics=("events", "logs")))
        ours.ensure_topology(replace(tenant, topics=("events", "logs")))
        stream = names.exchange_name(tenant.tenant_id)
        assert broker.ready(f"{stream}.events.0") == [b"1"]
        with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as client:
            assert f"{stream}.logs.0" in client.queues(f"^{stream}")
        ours.close()


def test_a_queue_with_other_arguments_is_refused_with_its_name(rabbitmq: RabbitHost) -> None:
    tenant = TenantTopology(tenant_id="taken", topics=("events",), partitions=1)
    name = names.partition_queue_name("taken", "events", 0)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
        connection.channel().queue_declare(name, durable=True)
    ours = administration(rabbitmq, "quorum")
    with pytest.raises(BrokerError) as caught:
        ours.ensure_topology(tenant)
    ours.close()
    line = str(caught.value)
    assert f"queue {name!r} exists with other arguments" in line
    assert "queue.type is" in line
    assert "\n" not in line


def test_a_permit_that_lapses_once_it_is_connected_lets_nothing_be_changed(
    rabbitmq: RabbitHost,
) -> None:
    topology = TenantTopology(tenant_id="kept", topics=("events",), partitions=1)
    ours = administration(rabbitmq)
    ours.ensure_topology(topology)
    ours.close()
    valid = True
    late = RabbitAdministration(
        url=rabbitmq.url,
        management_url=rabbitmq.management_url,
        queue_type="quorum",
        installation=brokers.INSTALLATION,
        fence=TermFence(7, lambda: valid),
    )

    class Lapses(BlockingConnection):
        """A connection that takes so long to be made that the term ends meanwhile."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            nonlocal valid
            super().__init__(*args, **kwargs)
            valid = False

    with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as client:
        there = client.definitions()
        for change in (
            lambda: late.remove_topology("kept"),
            lambda: late.ensure_topology(replace(topology, topics=("events", "more"))),
            late.check,
        ):
            valid = True
            with (
                patch.object(pika, "BlockingConnection", Lapses),
                pytest.raises(BrokerUnavailableError, match="the term 7 has lapsed"),
            ):
                change()
        assert client.definitions() == there
    late.close()


class Counted(BlockingConnection):
    """A connection that counts how many were made."""

    made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Counted.made += 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the connections that are made for declarations."""
    monkeypatch.setattr(Counted, "made", 0)
    monkeypatch.setattr(pika, "BlockingConnection", Counted)
    return lambda: Counted.made


def test_a_declaration_goes_on_the_connection_of_the_one_before(
    rabbitmq: RabbitHost, made: Callable[[], int]
) -> None:
    topology = TenantTopology(tenant_id="next", topics=(), partitions=1)
    with closing(administration(rabbitmq)) as ours:
        ours.claim("next")
        ours.ensure_topology(topology)
        ours.claim("next")
        assert made() == 1
    with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as client:
        assert "tenantry_claim_next" not in client.queues("claim")


def test_a_kept_connection_that_was_lost_is_replaced(
    rabbitmq: RabbitHost, made: Callable[[], int]
) -> None:
    topology = TenantTopology(tenant_id="lost", topics=(), partitions=1)
    with closing(administration(rabbitmq)) as ours:
        ours.ensure_topology(topology)
        kept = ours._channels._kept.take()
        assert kept is not None
        kept._impl._transport._sock.shutdown(socket.SHUT_RDWR)
        ours._channels._kept.keep(kept)
        ours.ensure_topology(topology)
        assert made() == 2


def test_what_is_refused_leaves_no_connection_behind(rabbitmq: RabbitHost) -> None:
    with closing(administration(rabbitmq)) as ours:
        with pytest.raises(BrokerError), ours._channels.channel() as channel:
            channel.queue_declare("there-is-no-such-queue", passive=True)
        assert ours._channels._kept.take() is None


def test_under_a_term_that_has_lapsed_nothing_is_done_on_a_kept_connection(
    rabbitmq: RabbitHost,
) -> None:
    valid = True
    late = RabbitAdministration(
        url=rabbitmq.url,
        management_url=rabbitmq.management_url,
        queue_type="quorum",
        installation=brokers.INSTALLATION,
        fence=TermFence(7, lambda: valid),
    )
    topology = TenantTopology(tenant_id="fenced", topics=(), partitions=1)
    late.ensure_topology(topology)
    take = late._channels._kept.take

    def lapse() -> pika.BlockingConnection | None:
        nonlocal valid
        kept = take()
        assert kept is not None
        valid = False
        return kept

    with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as client:
        there = client.definitions()
        with (
            patch.object(late._channels._kept, "take", lapse),
            pytest.raises(BrokerUnavailableError, match="the term 7 has lapsed"),
        ):
            late.ensure_topology(replace(topology, topics=("more",)))
        assert client.definitions() == there
    late.close()


def test_what_is_kept_open_is_given_up_also_under_a_term_that_has_lapsed(
    rabbitmq: RabbitHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = True
    ours = administration(rabbitmq, fence=TermFence(7, lambda: valid))
    with closing(ours):
        ours.ensure_topology(TenantTopology(tenant_id="lapsing", topics=(), partitions=1))
        ((_, kept),) = ours._channels._kept._kept
        valid = False
        monkeypatch.setattr("tenantry.broker.rabbitmq.blocking_channels.KEEP", 0.0)
        ours._channels.close_old()
        assert kept.is_closed
        valid = True
        ours.ensure_topology(TenantTopology(tenant_id="lapsing", topics=("one",), partitions=1))
        valid = False


def test_a_connection_is_kept_for_a_moment_only(
    rabbitmq: RabbitHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(administration(rabbitmq)) as ours:
        ours.ensure_topology(TenantTopology(tenant_id="brief", topics=(), partitions=1))
        ours.queue_counts()
        ((_, kept),) = ours._channels._kept._kept
        monkeypatch.setattr("tenantry.broker.rabbitmq.blocking_channels.KEEP", 0.0)
        ours.queue_counts()
        assert ours._channels._kept.take() is None
        assert kept.is_closed


def test_more_queues_than_a_page_of_the_management_api_holds_are_all_found(
    rabbitmq: RabbitHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenantry.broker.rabbitmq.management._PAGE_SIZE", 2)
    ours = administration(rabbitmq, "classic")
    topology = TenantTopology(tenant_id="paged", topics=("a", "b"), partitions=2)
    ours.ensure_topology(topology)
    with closing(ManagementClient(rabbitmq.management_url, vhost=rabbitmq.vhost)) as client:
        assert len(client.queues("^tenant_paged_")) == 6
        assert client.exchanges("^tenant_paged_") == ["tenant_paged_stream"]
        ours.remove_topology("paged")
        assert client.queues("^tenant_paged_") == []
    ours.close()
