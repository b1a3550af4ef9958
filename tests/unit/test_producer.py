from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tenantry.producer.run import Assignment, ProducerOptions, Sender, Tally
from tenantry.tenant_client.access import ProducerError, ensure_tenant, every_tenant, problem
from tenantry.tenant_client.amqp import AmqpClient, TenantClientError
from tenantry.tenant_client.connecting import Addresses

ASSIGNMENT = Assignment(
    run="run",
    url="amqp://user:hunter2@127.0.0.1:1/",
    tenant_id="1",
    topic="events",
    kind="event",
    producer=1,
    partitions=3,
    batches=4,
    batch_size=5,
    interval=0.0,
)


class ScriptedApi:
    """Answers with what it was given, in order, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str]] = []

    def send(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        self.calls.append((method, path))
        return self.answers.pop(0)


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "addresses", "expected"),
    [
        ("amqp://u:p@h:1/v", Addresses(), "amqp://u:p@h:1/v"),
        ("amqp://u:p@h:1/%2F", Addresses(amqp="other:2"), "amqp://u:p@other:2/%2F"),
        ("amqps://u:p%40@h", Addresses(amqp="[::1]:2"), "amqps://u:p%40@[::1]:2"),
        ("amqp://h", Addresses(amqp="other:2"), "amqp://other:2"),
        ("iggy://u:p@h:1", Addresses(iggy="other:2"), "iggy://u:p@other:2"),
        ("iggys://u:p%2F@h:1", Addresses(iggy="[::1]:2"), "iggys://u:p%2F@[::1]:2"),
        ("postgresql://u:p@h/d", Addresses(), "postgresql://u:p@h/d"),
    ],
)
def test_tenants_connect_where_they_are_told_to(
    url: str, addresses: Addresses, expected: str
) -> None:
    assert addresses.at(url) == expected


@pytest.mark.parametrize(
    ("url", "addresses", "reason"),
    [
        ("postgresql://h/d", Addresses(amqp="h:1"), "the embedded one: it has no AMQP address"),
        ("amqp://h", Addresses(iggy="h:1"), "RabbitMQ: it has no Iggy address"),
        ("iggy://h", Addresses(amqp="h:1"), "Apache Iggy: it has no AMQP address"),
        ("iggy://h", Addresses(amqp="h:1", iggy="h:1"), "Apache Iggy: it has no AMQP address"),
    ],
)
def test_an_address_of_another_kind_of_broker_is_refused(
    url: str, addresses: Addresses, reason: str
) -> None:
    with pytest.raises(TenantClientError, match=reason):
        addresses.at(url)


def test_the_defaults_make_2700_messages() -> None:
    assert ProducerOptions().messages == 2700


def test_a_broker_that_says_nothing_is_given_up_in_time() -> None:
    with silent_server() as port:
        link = AmqpClient(f"amqp://u:p@127.0.0.1:{port}/", name="test", timeout=0.3)
        with pytest.raises(TenantClientError):
            link.open()
        assert not link.is_open
        link.close()


def test_a_link_that_was_never_opened_publishes_nothing_and_closes() -> None:
    link = AmqpClient("amqp://u:p@127.0.0.1:1/", name="test")
    outcome = link.publish("stream", [])
    assert (outcome.confirmed, outcome.reason) == (frozenset(), "TenantClientError: not connected")
    link.close()
    link.close()


def test_a_sender_counts_what_it_could_not_send_and_gives_up_after_two_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenantry.producer.run.ATTEMPTS", 3)
    monkeypatch.setattr("tenantry.producer.run.FIRST_BACKOFF", 0.001)
    lines: list[str] = []
    dealt_with: list[int] = []
    sender = Sender(ASSIGNMENT, say=lines.append, stop=threading.Event(), sent=dealt_with.append)
    tally = sender.run()
    assert (tally.sent, tally.confirmed, tally.failed) == (20, 0, 20)
    assert dealt_with == [5, 5]
    assert [line.split(":")[0] for line in lines] == ["Retrying", "Failed"] * 2
    assert not any("hunter2" in line for line in lines)


def test_a_sender_that_is_stopped_sends_no_more() -> None:
    stop = threading.Event()
    stop.set()
    sender = Sender(ASSIGNMENT, say=lambda _line: None, stop=stop, sent=lambda _count: None)
    assert sender.run() == Tally(sent=20, confirmed=0)


def test_a_tenant_the_daemon_refuses_is_an_error_with_its_reason() -> None:
    api = ScriptedApi((422, {"title": "Bad", "detail": "partitions: must be\n1 to 64"}))
    with pytest.raises(ProducerError, match=re.escape("partitions: must be 1 to 64")):
        ensure_tenant(api, "1", topics=["events"], partitions=99, say=lambda _line: None)


def test_a_daemon_that_stays_unavailable_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenantry.tenant_client.access.FIRST_BACKOFF", 0.001)
    api = ScriptedApi(*[(503, {"detail": "draining"})] * 6)
    with pytest.raises(ProducerError, match="draining"):
        ensure_tenant(api, "1", topics=["events"], partitions=1, say=lambda _line: None)
    assert len(api.calls) == 6


def test_only_tenants_with_objects_on_the_broker_are_examined() -> None:
    def tenant(tenant_id: str, state: str) -> dict[str, Any]:
        return {"id": tenant_id, "state": state, "topics": [], "partitions": 1}

    first = {"data": [tenant("a", "active"), tenant("b", "deleting")], "next_cursor": "a/b="}
    second = {"data": [tenant("c", "paused"), tenant("d", "provisioning")], "next_cursor": None}
    api = ScriptedApi((200, first), (200, second))
    assert [one.tenant_id for one in every_tenant(api)] == ["a", "c"]
    assert api.calls[1] == ("GET", "/tenants?limit=500&cursor=a%2Fb%3D")


def test_a_problem_is_told_in_a_line() -> None:
    assert problem(409, {"title": "Conflict", "detail": None}) == "Conflict"
    assert problem(502, None) == "status 502"
