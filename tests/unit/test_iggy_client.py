"""Iggy's client: what is said where it is missing, and which of its errors are which."""

from __future__ import annotations

import sys

import pytest

from tenantry.broker.iggy.client import (
    Access,
    CredentialsError,
    ExistsError,
    MissingError,
    RefusedError,
    error_of,
    library,
)
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.topology import mark_topic, marked_by, place_of, routed
from tenantry.broker.port import BrokerError, BrokerUnavailableError, QueueSpec
from tenantry.tenant_client.amqp import TenantClientError, TenantMessage
from tenantry.tenant_client.iggy import IggyTenantClient


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_iggy", None)
    with pytest.raises(BrokerError, match=r"pip install 'tenantry\[iggy\]'"):
        library()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Resource with key: x was not found."), MissingError),
        (RuntimeError("Topic with name: x for stream with ID: 1 was not found."), MissingError),
        (RuntimeError("Stream with name: x already exists."), ExistsError),
        (RuntimeError("Unauthorized"), RefusedError),
        (RuntimeError("Invalid credentials"), CredentialsError),
        (RuntimeError("Disconnected"), BrokerUnavailableError),
        (RuntimeError("Cannot establish connection"), BrokerUnavailableError),
        (RuntimeError("Request transiently not committed; retry"), BrokerUnavailableError),
        (TimeoutError(), BrokerUnavailableError),
        (ValueError("Too big message payload"), BrokerError),
        (RuntimeError("Invalid username"), BrokerError),
    ],
)
def test_the_librarys_errors_are_told_apart(error: Exception, kind: type[BrokerError]) -> None:
    found = error_of(error, "h:1")
    assert type(found) is kind
    assert "h:1" in str(found)


def test_a_url_is_read_and_written_as_it_was() -> None:
    access = Access.of("iggy://u%40x:p%2Fw@[::1]:9")
    assert (access.host, access.port, access.user, access.password) == ("::1", 9, "u@x", "p/w")
    assert Access.of(access.url_for(access.user, access.password)) == access
    assert Access.of("iggys://u:p@h").secure
    assert Access.of("iggy://h").where == "h:8090"
    assert "p/w" not in repr(access)


def test_queues_and_routing_keys_are_partitions() -> None:
    queue = QueueSpec.of("acme", "events", 3)
    assert tuple(place_of(queue)) == ("tenant_acme_stream", "events", 3)
    assert routed("tenant_acme_stream", queue.routing_key) == place_of(queue)
    default = QueueSpec.of("acme", "default", 0)
    assert routed("tenant_acme_stream", "default") == place_of(default)


def test_a_mark_is_no_topic_that_a_tenant_may_have() -> None:
    assert marked_by(mark_topic("here")) == "here"
    assert marked_by("tenantry-here") is None


def test_what_is_asked_of_a_reader_that_has_ended_is_done_at_once() -> None:
    consuming = IggyConsuming(Access.of("iggy://127.0.0.1:1"), None)  # type: ignore[arg-type]
    consuming.stop()
    consuming.run()
    done: list[int] = []
    consuming.call(lambda: done.append(1))
    assert done == [1]


def test_a_tenants_client_without_the_extra_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "apache_iggy", None)
    with pytest.raises(TenantClientError, match=r"pip install 'tenantry\[iggy\]'"):
        IggyTenantClient("iggy://u:p@127.0.0.1:1")


def test_a_tenants_client_names_what_to_correct_and_no_password() -> None:
    client = IggyTenantClient("iggy://u:hunter2@127.0.0.1:1")
    with pytest.raises(TenantClientError, match="--iggy-address") as caught:
        client.open()
    assert "hunter2" not in str(caught.value)
    assert "broker.url" not in str(caught.value)
    mail = TenantMessage(routing_key="events.0", body=b"x", message_id="1")
    assert client.publish("stream", [mail]).reason == "not connected"
    client.close()
    client.close()
