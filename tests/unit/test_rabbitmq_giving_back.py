"""No ack takes along what was not stored: what did not fit, what came on a channel given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from tenantry.broker.budget import OVERHEAD, Budget
from tenantry.broker.port import QueueSpec
from tenantry.broker.rabbitmq.reading import Gate, Receiver
from tenantry.broker.rabbitmq.subscription import RabbitSubscription
from tests.brokers import RecordingSink
from tests.waiting import eventually

SIZE = 1000


class Broker:
    """A connection, its loop and its channel in one: what is said to RabbitMQ, in order."""

    is_open = True
    channel_number = 1

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.consumed: list[str] = []
        self.cancels: list[Callable[[object], None]] = []
        self.later: list[Callable[[], None]] = []
        self.settled_at = 0.0
        self.gate: Gate | None = None
        self._consumers: dict[str, object] = {}

    def close(self) -> None:
        self.said.append(("close", len(self._consumers)))

    def call(self, job: Callable[[], None]) -> bool:
        job()
        return True

    def call_later(self, _seconds: float, job: Callable[[], None]) -> None:
        self.later.append(job)

    def channel(self, on_open_callback: Callable[[Any], None]) -> Broker:
        self.later.append(lambda: on_open_callback(self))
        return self

    def basic_consume(self, queue: str, *_: object, callback: Any = None, **__: object) -> None:
        self.consumed.append(queue)
        if callback is not None:
            callback(None)

    @property
    def callbacks(self) -> Broker:
        return self

    def add(self, *key: object, arguments: dict[str, str]) -> None:
        """Take note of whom to tell that a consumer's cancel is answered."""
        *_, answered = key
        assert arguments.keys() == {"consumer_tag"}
        self.cancels.append(cast("Callable[[object], None]", answered))

    def basic_cancel(self, _tag: str, callback: Callable[[object], None]) -> None:
        """Send nothing; the answer comes when a test says so."""

    def basic_ack(self, tag: int, *, multiple: bool) -> None:
        assert multiple
        self.said.append(("ack up to", tag))

    def give_back(self, _channel: int, tags: Sequence[int]) -> None:
        self.said += [("give back", tag) for tag in tags]

    def receive(self, _channel: int, _tag: str, receiver: Receiver) -> None:
        self.gate = receiver[3]

    def nothing(self, *_: object, **__: object) -> None:
        pass

    add_on_close_callback = add_on_cancel_callback = basic_qos = forget = nothing

    @property
    def ioloop(self) -> Broker:
        return self

    def add_callback(self, job: Callable[[], None]) -> None:
        self.later.append(job)

    def time_passes(self) -> None:
        jobs, self.later = self.later, []
        for job in jobs:
            job()


def test_a_delivery_that_comes_after_its_consumer_was_cancelled_is_given_back_too() -> None:
    broker: Any = Broker()
    subscription = RabbitSubscription(
        broker,
        [QueueSpec(name="q", topic="t", partition=0)],
        prefetch=10,
        sink=RecordingSink(),
        forget=lambda _: None,
        budget=Budget(each=2 * (SIZE + OVERHEAD), total=2 * (SIZE + OVERHEAD)),
    )
    subscription.connected(broker)
    broker.time_passes()
    assert broker.gate.admit(SIZE, 0)
    assert broker.gate.admit(SIZE, 0)
    for tag in (3, 4):
        assert not broker.gate.admit(SIZE, 0)
        broker.gate.dropped(tag)
    (cancelled,) = broker.cancels
    assert broker.said == []
    cancelled(None)
    # RabbitMQ has confirmed the cancel, and this was on its way.
    assert not broker.gate.admit(SIZE, 0)
    broker.gate.dropped(5)
    subscription.settle(1, ack_up_to=2)
    broker.time_passes()
    assert broker.gate.admit(SIZE, 0)
    subscription.settle(1, ack_up_to=6)
    assert [one for one in broker.said if one[0] == "give back"] == [
        ("give back", 3), ("give back", 4), ("give back", 5),
    ]  # fmt: skip
    assert broker.said.index(("give back", 5)) < broker.said.index(("ack up to", 6))


def test_in_order_what_did_not_fit_comes_on_another_channel_once_there_is_room() -> None:
    broker: Any = Broker()
    sink = RecordingSink()
    subscription = RabbitSubscription(
        broker,
        [QueueSpec(name="q", topic="t", partition=0, ordered=True)],
        prefetch=10,
        sink=sink,
        forget=lambda _: None,
        budget=Budget(each=2 * (SIZE + OVERHEAD), total=2 * (SIZE + OVERHEAD)),
    )
    subscription.connected(broker)
    broker.time_passes()
    assert broker.gate.admit(SIZE, 0)
    assert broker.gate.admit(SIZE, 0)
    assert not broker.gate.admit(SIZE, 0)
    broker.gate.dropped(3)
    for _ in range(3):
        broker.time_passes()
    assert broker.said == [], "nothing is settled yet"
    subscription.settle(1, ack_up_to=2)

    def begun_again() -> bool:
        broker.time_passes()
        return [word for word, _ in sink.log] == ["consuming", "lost", "consuming"]

    eventually(begun_again)
    # No consumer is cancelled, and nothing given back alone: others would pass it.
    assert broker.said == [("ack up to", 2), ("close", 0)]
    assert broker.cancels == []
    assert subscription.window < 10


def test_nothing_is_consumed_on_a_channel_that_was_given_up_while_it_opened() -> None:
    first: Any = Broker()
    second: Any = Broker()
    sink = RecordingSink()
    subscription = RabbitSubscription(
        first,
        [QueueSpec(name="q", topic="t", partition=0)],
        prefetch=10,
        sink=sink,
        forget=lambda _: None,
        budget=Budget(),
    )
    subscription.connected(first)
    subscription.leave("it goes on with another connection")
    subscription.connected(second)
    first.time_passes()
    assert first.consumed == [], "its tags would be taken for the other channel's"
    second.time_passes()
    assert second.consumed == ["q"]
    assert sink.log == [("lost", 1), ("consuming", 3)]
