"""Walking along dead letters on a real RabbitMQ."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest

from tenantry.broker.port import (
    BrokerUnavailableError,
    DeadLettersBusyError,
    QueuedDeadLetter,
    TenantTopology,
)
from tenantry.broker.rabbitmq import dead_letters
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.pika_internals import FrameReadingConnection
from tenantry.broker.topology import QueueType
from tests.depth import examples
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

QUEUE = "tenant_acme_dead_letters"


class Queue:
    """A tenant with two partitions, and what it has in its dead-letter queue."""

    def __init__(self, host: RabbitHost, queue_type: QueueType) -> None:
        self.host = host
        administration = RabbitAdministration(
            url=host.url,
            management_url=host.management_url,
            queue_type=queue_type,
            installation="test",
        )
        administration.ensure_topology(
            TenantTopology(tenant_id="acme", topics=("logs",), partitions=2)
        )
        administration.close()
        self.connection = pika.BlockingConnection(pika.URLParameters(host.url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.letters = RabbitDeadLetters(host.url)

    def reject(self, *bodies: bytes, key: str = "logs.1", **properties: Any) -> None:
        """Publish messages, and have them rejected."""
        queue = f"tenant_acme_stream.{key}" if "." in key else "tenant_acme_queue"
        before = self.ready()
        for number, body in enumerate(bodies):
            given = {"message_id": f"m-{number}", "delivery_mode": 2} | properties
            self.channel.basic_publish(
                "tenant_acme_stream", key, body, pika.BasicProperties(**given), mandatory=True
            )
        for _ in bodies:
            method, _, _ = eventually(
                lambda: (got := self.channel.basic_get(queue))[0] is not None and got
            )
            self.channel.basic_reject(method.delivery_tag, requeue=False)
        eventually(lambda: self.ready() == before + len(bodies))

    def ready(self) -> int:
        count: int = self.channel.queue_declare(QUEUE, passive=True).method.message_count
        return count

    def bodies(self) -> list[bytes]:
        """Look at what is in the queue, from the oldest on, and put it back."""
        count = self.ready()
        looking = self.connection.channel()
        try:
            return [looking.basic_get(QUEUE)[2] for _ in range(count)]
        finally:
            looking.close()
            eventually(lambda: self.ready() == count)

    def walked(self, most: int = 100) -> list[QueuedDeadLetter]:
        found: list[QueuedDeadLetter] = []
        with self.letters.browse("acme") as browser:
            while batch := browser.next(most):
                found += batch
        return found


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a walk wait for a message, and for a count, as long as that takes."""
    for name in ("QUIET_SECONDS", "COUNT_SECONDS"):
        monkeypatch.setattr(dead_letters, name, DEADLINE)


@pytest.fixture(params=["quorum", "classic"])
def queue(request: pytest.FixtureRequest, rabbitmq: RabbitHost) -> Iterator[Queue]:
    made = Queue(rabbitmq, request.param)
    yield made
    made.connection.close()


def test_a_walk_meets_every_message_as_it_was(queue: Queue) -> None:
    queue.reject(b"\x00\xff", headers={"n": 1}, content_type="a/b", timestamp=1_700_000_000)
    queue.reject(b"default", key="default")
    one, two = queue.walked(1)
    first, second = one.message, two.message
    assert (first.id, first.topic, first.partition) == ("m-0", "logs", 1)
    assert (first.body, first.content_type) == (b"\x00\xff", "a/b")
    assert first.published_at_ms == 1_700_000_000_000
    assert first.headers == {"n": 1}
    assert one.reason == "rejected"
    assert one.died_at is not None
    assert abs(one.died_at.timestamp() - time.time()) < 600
    assert (second.body, second.topic, second.partition) == (b"default", "default", 0)


def test_what_is_not_removed_stays_in_its_place(queue: Queue) -> None:
    queue.reject(*[b"%d" % number for number in range(10)])
    with queue.letters.browse("acme") as browser:
        assert len(browser.next(4)) == 4
        browser.remove([1, 3])
        assert [one.message.body for one in browser.next(100)] == [
            b"%d" % number for number in range(4, 10)
        ]
        browser.remove([0])
        assert browser.next(1) == []
    assert browser.gone
    rest = [b"0", b"2", b"5", b"6", b"7", b"8", b"9"]
    eventually(lambda: queue.ready() == len(rest))
    assert queue.bodies() == rest
    assert [one.message.body for one in queue.walked()] == rest


def test_many_that_were_only_looked_at_stay_in_their_places(queue: Queue) -> None:
    bodies = [b"%d" % number for number in range(40)]
    queue.reject(*bodies)
    for _ in range(3):
        assert [one.message.body for one in queue.walked()] == bodies
    with queue.letters.browse("acme") as browser:
        assert len(browser.next(40)) == 40
        browser.remove(range(0, 40, 2))
    assert browser.gone
    assert [one.message.body for one in queue.walked()] == bodies[1::2]


def test_a_walk_that_fails_leaves_what_was_not_removed(queue: Queue) -> None:
    queue.reject(b"0", b"1", b"2")

    def fail() -> None:
        with queue.letters.browse("acme") as browser:
            browser.next(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    eventually(lambda: queue.ready() == 3)
    assert queue.bodies() == [b"0", b"1", b"2"]


def test_what_comes_during_a_walk_is_for_the_next(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "COUNT_SECONDS", 1.0)  # it waits in vain
    queue.reject(b"0", b"1")
    with queue.letters.browse("acme") as browser:
        assert len(browser.next(1)) == 1
        queue.channel.basic_publish("dlx_exchange", "acme", b"late", mandatory=True)
        assert [one.message.body for one in browser.next(5)] == [b"1"]
        browser.remove([0])
        assert browser.next(5) == []
    assert not browser.gone  # not known, for what has come
    eventually(lambda: queue.ready() == 2)
    assert sorted(one.message.body for one in queue.walked()) == [b"0", b"late"]


def test_many_messages_are_walked_along(queue: Queue) -> None:
    count = examples(1000, 3000)
    for number in range(count):
        queue.channel.basic_publish("dlx_exchange", "acme", b"%d" % number)
    eventually(lambda: queue.ready() == count)
    with queue.letters.browse("acme") as browser:
        seen = 0
        while batch := browser.next(100):
            assert [one.message.body for one in batch] == [
                b"%d" % n for n in range(seen, seen + 100)
            ]
            seen += len(batch)
            browser.remove(range(len(batch)))
    assert seen == count
    assert browser.gone
    assert queue.ready() == 0


def test_a_walk_holds_more_than_a_channel_may(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "PREFETCH", 40)
    for number in range(420):
        queue.channel.basic_publish("dlx_exchange", "acme", b"%d" % number)
    eventually(lambda: queue.ready() == 420)
    with queue.letters.browse("acme") as browser:
        bodies = []
        while batch := browser.next(28):
            bodies += [one.message.body for one in batch]
            if len(bodies) % 56 == 0:
                browser.remove([0, 27])
        assert browser.complete
    assert bodies == [b"%d" % number for number in range(420)]
    assert browser.gone
    removed = {b"%d" % (at + place) for at in range(28, 420, 56) for place in (0, 27)}
    left = [body for body in bodies if body not in removed]
    eventually(lambda: queue.ready() == len(left))
    assert sorted(queue.bodies()) == sorted(left)


def test_large_messages_come_in_small_batches(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "BATCH_BYTES", 1_000_000)
    for number in range(5):
        queue.channel.basic_publish("dlx_exchange", "acme", bytes([number]) * 600_000)
    eventually(lambda: queue.ready() == 5)
    with queue.letters.browse("acme") as browser:
        sizes = []
        while batch := browser.next(100):
            sizes.append(len(batch))
    assert sizes == [2, 2, 1]


def test_of_large_messages_few_are_asked_for_at_once_and_all_of_them_come(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ reads all that a consumer may hold, thousands of large messages, into its memory."""
    monkeypatch.setattr(dead_letters, "PREFETCH_BYTES", 600_000)
    for number in range(40):
        queue.channel.basic_publish("dlx_exchange", "acme", bytes([number]) * 100_000)
    eventually(lambda: queue.ready() == 40)
    with queue.letters.browse("acme") as browser:
        seen, held = 0, []
        while batch := browser.next(1):
            seen += len(batch)
            held.append(40 - queue.ready() - seen)
        assert browser.complete
    assert seen == 40
    assert max(held) <= 6


def test_a_message_that_comes_slowly_is_not_in_somebody_elses_hands(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(2_000_000)
    queue.channel.basic_publish("dlx_exchange", "acme", body)
    eventually(lambda: queue.ready() == 1)
    read = FrameReadingConnection._on_data_available
    pieces = 0
    with queue.letters.browse("acme") as browser:
        driven, wait = browser._driven, browser._driven.wait

        def read_a_piece(self: FrameReadingConnection, data: bytes) -> None:
            nonlocal pieces
            pieces += 1
            read(self, data)
            driven.wake()

        def wait_for_a_piece(done: Callable[[], bool], *given: Any, **more: Any) -> None:
            # As on a line on which the next piece takes longer than is quiet.
            seen = pieces
            wait(lambda: done() or pieces > seen, *given, **more)

        with monkeypatch.context() as patched:
            patched.setattr(FrameReadingConnection, "_on_data_available", read_a_piece)
            patched.setattr(driven, "wait", wait_for_a_piece)
            (letter,) = browser.next(10)
        assert browser.complete
    assert pieces > 10
    assert letter.message.body == body


def test_one_walk_of_a_tenant_at_a_time(queue: Queue) -> None:
    queue.reject(b"0")
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with queue.letters.browse("acme") as browser:
            browser.next(1)
            entered.set()
            assert leave.wait(DEADLINE)

    with ThreadPoolExecutor(1) as pool:
        walking = pool.submit(first)
        assert entered.wait(DEADLINE)
        with pytest.raises(DeadLettersBusyError), queue.letters.browse("acme"):
            pass
        with queue.letters.browse("somebody-else") as other:
            assert other.next(1) == []
        leave.set()
        walking.result(DEADLINE)
    eventually(lambda: queue.ready() == 1)
    assert len(queue.walked()) == 1


def test_messages_in_somebody_elses_hands_are_not_waited_for(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.reject(b"0", b"1", b"2")
    other = queue.connection.channel()
    with queue.letters.browse("acme") as browser:
        assert len(browser.next(1)) == 1
        browser._driven.wait(lambda: len(browser._arrived) == 2, DEADLINE)
        monkeypatch.setattr(dead_letters, "QUIET_SECONDS", 0.3)
        browser._left += 5  # as if more had been counted
        assert browser.complete
        assert len(browser.next(10)) == 2
        assert browser.next(10) == []
        assert not browser.complete
    other.close()


def test_a_broker_that_is_not_there_is_an_outage(queue: Queue) -> None:
    away = RabbitDeadLetters("amqp://guest:guest@127.0.0.1:1/")
    with pytest.raises(BrokerUnavailableError), away.browse("acme"):
        pass
    queue.reject(b"0")
    assert len(queue.walked()) == 1


def test_a_connection_that_breaks_during_a_walk_loses_nothing(queue: Queue) -> None:
    queue.reject(b"0", b"1")

    def lose() -> None:
        with queue.letters.browse("acme") as browser:
            assert browser.next(1)
            browser._connection._transport._sock.shutdown(socket.SHUT_RDWR)
            browser._driven.wait(lambda: False, 5)

    with pytest.raises(BrokerUnavailableError):
        lose()
    eventually(lambda: queue.ready() == 2)
