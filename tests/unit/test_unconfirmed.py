"""Confirms, refusals, returns and lost channels, without a broker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, UnroutableError
from tenantry.broker.rabbitmq.publishing import IN_A_ROW, LARGE, Batch, Waiting
from tenantry.broker.rabbitmq.unconfirmed import (
    ENOUGH,
    ENOUGH_BYTES,
    IN_USE,
    LONGEST_DELAY,
    MAX_UNCONFIRMED,
    Unconfirmed,
)

REFUSED = partial(BrokerUnavailableError, "refused")


def message(key: str = "events", message_id: str | None = None) -> Outgoing:
    return Outgoing(exchange="stream", routing_key=key, body=b"12345", message_id=message_id)


def send(unconfirmed: Unconfirmed[Batch], batch: Batch) -> None:
    while (one := batch.next_unsent()) is not None:
        unconfirmed.sent(batch, one)


def sent(unconfirmed: Unconfirmed[Batch], *messages: Outgoing) -> Batch:
    batch = Batch(messages)
    send(unconfirmed, batch)
    return batch


def answer(
    unconfirmed: Unconfirmed[Batch],
    tag: int,
    *,
    multiple: bool = False,
    refusal: Callable[[], BrokerError] | None = None,
    now: float = 0.0,
) -> None:
    for batch, error in unconfirmed.settle(tag, multiple=multiple, refusal=refusal, now=now):
        batch.answered(error)


def test_a_batch_is_done_when_its_last_message_is_confirmed() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    batch = sent(unconfirmed, message(), message(), message())
    assert unconfirmed.bytes == 15
    for tag in (2, 1):
        answer(unconfirmed, tag)
        assert not batch.done.is_set()
    answer(unconfirmed, 3)
    assert batch.done.is_set()
    assert batch.error is None
    assert (len(unconfirmed), unconfirmed.bytes) == (0, 0)


def test_one_answer_may_confirm_many_batches() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    batches = [sent(unconfirmed, message(), message()) for _ in range(3)]
    answer(unconfirmed, 5, multiple=True)
    assert [batch.done.is_set() for batch in batches] == [True, True, False]
    answer(unconfirmed, 6, multiple=True)
    assert batches[2].done.is_set()


def test_a_refused_message_fails_its_batch_only() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    one, two = sent(unconfirmed, message()), sent(unconfirmed, message())
    answer(unconfirmed, 1, refusal=REFUSED)
    answer(unconfirmed, 2)
    assert isinstance(one.error, BrokerUnavailableError)
    assert two.error is None


def test_a_returned_message_is_unroutable_though_it_is_confirmed() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    lost = sent(unconfirmed, message("nothing", "a"))
    kept = sent(unconfirmed, message("events", "b"))
    unconfirmed.returned("stream", "nothing", "a")
    answer(unconfirmed, 2, multiple=True)
    assert isinstance(lost.error, UnroutableError)
    assert kept.error is None


def test_a_return_never_counts_for_what_was_sent_later() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    before = sent(unconfirmed, message(message_id="a"))
    unconfirmed.returned("stream", "events", "a")
    after = sent(unconfirmed, message(message_id="a"))
    answer(unconfirmed, 2, multiple=True)
    assert isinstance(before.error, UnroutableError)
    assert after.done.is_set()
    assert after.error is None


def test_many_returns_are_remembered_no_longer_than_needed() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    for number in range(5_000):
        sent(unconfirmed, message(message_id=str(number)))
        unconfirmed.returned("stream", "events", str(number))
        if number >= 10:
            answer(unconfirmed, number - 9)
    assert len(unconfirmed._returned) < 1_100


def test_what_a_channel_leaves_unconfirmed_is_sent_again_in_its_order() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    batch = Batch([message(message_id=str(number)) for number in range(5)])
    for _ in range(4):
        one = batch.next_unsent()
        assert one is not None
        unconfirmed.sent(batch, one)
    answer(unconfirmed, 2)
    waiting = Waiting()
    for lost, messages in unconfirmed.lose_channel().items():
        waiting.put_back(lost, messages)
    assert list(waiting) == [batch]
    again = [batch.next_unsent() for _ in range(4)]
    assert [one.message_id for one in again if one] == ["0", "2", "3", "4"]


def test_numbers_begin_anew_on_a_new_channel() -> None:
    unconfirmed: Unconfirmed[Batch] = Unconfirmed()
    batch = sent(unconfirmed, message(), message())
    batch.send_again(unconfirmed.lose_channel()[batch])
    send(unconfirmed, batch)
    answer(unconfirmed, 2, multiple=True)
    assert batch.done.is_set()


def test_nobody_waits_for_an_abandoned_or_failed_batch() -> None:
    waiting = Waiting()
    abandoned, failed = Batch([message()]), Batch([message()])
    abandoned.abandoned = True
    failed.fail(BrokerError("no"))
    failed.fail(BrokerError("again"))
    assert str(failed.error) == "no"
    for batch in (abandoned, failed):
        waiting.put_back(batch, [message()])
    assert not waiting
    assert abandoned.next_unsent() is None


def of(exchange: str, number: int, body: bytes = b"") -> Batch:
    return Batch([Outgoing(exchange=exchange, routing_key="k", body=body) for _ in range(number)])


def never_full(_exchange: str) -> bool:
    return False


def sent_in_order(waiting: Waiting, most: int = 100_000) -> list[str]:
    order = []
    while len(order) < most and (turn := waiting.next(never_full)) is not None:
        order.append(turn[1].exchange)
    return order


def test_a_message_goes_out_after_a_few_of_the_thousands_that_another_has_waiting() -> None:
    waiting = Waiting()
    for _ in range(16):
        waiting.add(of("noisy", 1000))
    assert sent_in_order(waiting, 100) == ["noisy"] * 100
    waiting.add(of("quiet", 1))
    assert "quiet" in sent_in_order(waiting, IN_A_ROW + 1)
    assert len(sent_in_order(waiting)) == 16_000 - 100 - IN_A_ROW
    assert not waiting


@pytest.mark.parametrize(("size", "before"), [(LARGE, IN_A_ROW // 2), (1024 * 1024, 1)])
def test_of_large_messages_fewer_go_out_before_anothers(size: int, before: int) -> None:
    waiting = Waiting()
    for _ in range(16):
        waiting.add(of("noisy", 100, b"x" * size))
    assert sent_in_order(waiting, 1) == ["noisy"]
    waiting.add(of("quiet", 1))
    assert "quiet" in sent_in_order(waiting, before + 1)


def test_one_exchange_s_messages_go_out_in_their_order() -> None:
    waiting = Waiting()
    calls = [of("noisy", 30), of("noisy", 30)]
    for call in calls:
        waiting.add(call)
    waiting.add(of("other", 30))
    turns = []
    while (turn := waiting.next(never_full)) is not None:
        turns.append(turn[0])
    assert [one for one in turns if one.exchange == "noisy"] == [calls[0]] * 30 + [calls[1]] * 30


def test_an_exchange_whose_queue_does_not_confirm_leaves_the_others_room() -> None:
    unconfirmed, waiting = Unconfirmed(), Waiting()
    waiting.add(of("silent", 2 * MAX_UNCONFIRMED))
    while (turn := waiting.next(unconfirmed.has_its_share)) is not None:
        unconfirmed.sent(*turn)
    assert len(unconfirmed) < MAX_UNCONFIRMED
    waiting.add(of("other", 1))
    turn = waiting.next(unconfirmed.has_its_share)
    assert turn is not None
    assert turn[1].exchange == "other"
    answer(unconfirmed, 1)
    assert waiting.next(unconfirmed.has_its_share) is not None


def test_of_what_is_confirmed_late_few_bytes_are_on_their_way_while_others_publish_too() -> None:
    unconfirmed, waiting = Unconfirmed(), Waiting()
    large = ENOUGH_BYTES // 4
    waiting.add(of("busy", 100, b"x" * large))
    waiting.add(of("other", 1))
    for _ in range(8):
        turn = waiting.next(unconfirmed.has_its_share)
        assert turn is not None
        unconfirmed.sent(*turn, 100.0)
    answer(unconfirmed, 7, multiple=True, now=100.0 + 2 * LONGEST_DELAY)
    while (turn := waiting.next(unconfirmed.has_its_share)) is not None:
        unconfirmed.sent(*turn, 101.0)
    assert unconfirmed.bytes <= ENOUGH_BYTES + large


def test_of_what_the_broker_confirms_late_little_is_on_its_way_while_others_publish_too() -> None:
    unconfirmed, waiting, now, tag = Unconfirmed(), Waiting(), 100.0, 0

    def send() -> int:
        while (turn := waiting.next(unconfirmed.has_its_share)) is not None:
            unconfirmed.sent(*turn, now)
        return len(unconfirmed)

    def confirmed(seconds: float, left: int) -> None:
        nonlocal now, tag
        now += seconds
        tag += len(unconfirmed) - left
        answer(unconfirmed, tag, multiple=True, now=now)

    waiting.add(of("busy", 100_000))
    whole = send()
    confirmed(2 * LONGEST_DELAY, 100)
    # Alone it has all it may have: the broker may be far away.
    assert send() == whole > ENOUGH
    waiting.add(of("other", 1))
    assert send() == whole + 1
    for _ in range(3):
        confirmed(2 * LONGEST_DELAY, 100)
        assert send() in {ENOUGH, ENOUGH + 1}
    # Where the broker confirms at once nobody is in anybody's way.
    confirmed(LONGEST_DELAY / 2, 100)
    assert send() == whole
    # The other has not been seen for a while.
    confirmed(2 * LONGEST_DELAY + IN_USE, 100)
    assert send() == whole
