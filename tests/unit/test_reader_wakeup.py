"""When the embedded broker's reader sleeps, and when publishers must wake it."""

from __future__ import annotations

from math import inf

from tenantry.broker.postgres.reader_wakeup import LONGEST_PAUSE, LOOK, QUIET, ReaderWakeup


def asleep(*queues: int) -> ReaderWakeup:
    """Give a reader that sleeps for some queues, and dozes for none."""
    wakeup = ReaderWakeup()
    wakeup.fall_asleep(queues, 100, 0.0)
    wakeup.due(100, 0.0)
    assert wakeup.pause(0.0) == inf
    return wakeup


def test_a_queue_in_motion_is_watched_until_it_has_been_quiet() -> None:
    wakeup = ReaderWakeup()
    wakeup.watch([7], -QUIET)
    assert wakeup.fetched([7], {7: 1}, 0.0) == []
    assert 7 in wakeup.awake()
    assert wakeup.pause(0.0) == LOOK
    assert wakeup.quiet(QUIET / 2) == []
    assert wakeup.quiet(QUIET) == [7]


def test_a_message_now_and_then_does_not_wake_the_reader_up() -> None:
    wakeup = asleep(7, 8)
    for now in range(1, 10):
        assert wakeup.told([7], float(now)) == []
        assert wakeup.fetched([7, 8], {7: 1}, float(now)) == []
    assert wakeup.awake() == []
    assert wakeup.pause(10.0) == inf


def test_messages_that_follow_one_another_soon_wake_it_up() -> None:
    wakeup = asleep(7, 8)
    wakeup.told([7, 8], 1.0)
    assert wakeup.fetched([7], {7: 1}, 1.0) == []
    soon = 1.0 + QUIET / 2
    assert wakeup.fetched([8], {8: 1}, soon) == [], "another queue's"
    assert wakeup.told([7], soon) == []
    assert wakeup.fetched([7], {7: 1}, soon) == [7]
    assert wakeup.awake() == [7]
    assert wakeup.quiet(1.0 + QUIET) == []
    assert wakeup.quiet(soon + QUIET) == [7]


def test_several_messages_at_once_wake_it_up_as_a_slow_reader_finds_them_so() -> None:
    wakeup = asleep(7)
    wakeup.told([7], 1.0)
    assert wakeup.fetched([7], {7: 2}, 1.0) == [7]


def test_a_message_that_it_was_not_told_of_wakes_it_up() -> None:
    """Where the server notifies of nothing any more, say: the next ones are to be found soon."""
    wakeup = asleep(7)
    assert wakeup.fetched([7], {7: 1}, 1.0) == [7]


def test_being_told_again_of_what_nobody_takes_wakes_it_up() -> None:
    """A slow handler, say: else each of the messages would be told of, and commits one by one."""
    wakeup = asleep(7, 8)
    assert wakeup.told([7], 1.0) == []
    assert wakeup.told([8], 2.0) == []
    assert wakeup.told([7], 3.0) == [7]
    wakeup.fetched([8], {}, 3.5)
    assert wakeup.told([8], 4.0) == [], "it was fetched from, though others had been quicker"


def test_having_fallen_asleep_it_looks_until_those_have_ended_who_may_not_know() -> None:
    wakeup = ReaderWakeup()
    wakeup.watch([7], 0.0)
    wakeup.fall_asleep([7], 100, 1.0)
    assert 7 not in wakeup.awake()
    # At once, since somebody may have come in between; then less and less often.
    assert wakeup.any_due(1.0)
    assert wakeup.due(99, 1.0) == {7}
    assert not wakeup.any_due(1.0 + LOOK)
    assert wakeup.any_due(1.0 + 2 * LOOK)
    # A last time, with all of them ended before.
    assert wakeup.due(100, 1.1) == {7}
    assert not wakeup.any_due(inf)
    assert wakeup.pause(1.1) == inf


def test_a_transaction_that_stays_open_has_it_look_no_more_often_than_for_every_queue() -> None:
    wakeup = ReaderWakeup()
    wakeup.fall_asleep([7], 100, 0.0)
    now, looks = 0.0, 0
    while (pause := wakeup.pause(now)) < inf:
        now += pause
        assert wakeup.due(50, now) == {7}
        looks += 1
    assert looks < 10
    assert LONGEST_PAUSE / 2 < now < 2 * LONGEST_PAUSE


def test_what_wakes_it_is_said_once_and_ends_its_doze() -> None:
    wakeup = ReaderWakeup()
    wakeup.fall_asleep([7, 8], 100, 0.0)
    assert wakeup.fetched([7, 8], {7: 1}, 1.0) == [7]
    assert wakeup.fetched([7, 8], {7: 1}, 1.0) == []
    assert wakeup.told([7], 1.0) == wakeup.told([7], 1.0) == []
    assert wakeup.due(100, 1.0) == {8}


def test_a_queue_that_is_read_no_more_is_looked_at_no_more() -> None:
    wakeup = ReaderWakeup()
    wakeup.watch([1], 0.0)
    wakeup.fall_asleep([2, 3], 100, 0.0)
    wakeup.told([2, 3], 1.0)
    wakeup.fetched([3], {3: 1}, 1.0)
    wakeup.forget([1, 2, 3])
    assert wakeup.pause(0.0) == inf
    wakeup.watch([2, 3], 2.0 - QUIET)
    wakeup.fall_asleep(wakeup.quiet(2.0), 100, 2.0)
    assert wakeup.told([2], 2.0) == [], "that it was told before counts no more"
