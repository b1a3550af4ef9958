"""When the embedded broker's reader sleeps, and when publishers must wake it."""

from __future__ import annotations

from math import inf

from tenantry.broker.postgres.reader_wakeup import LONGEST_PAUSE, LOOK, QUIET, ReaderWakeup


def test_a_queue_in_motion_is_watched_until_it_has_been_quiet() -> None:
    wakeup = ReaderWakeup()
    assert wakeup.stay_awake([7], 0.0) == []
    assert 7 in wakeup.awake()
    assert wakeup.pause(0.0) == LOOK
    assert wakeup.quiet(QUIET / 2) == []
    assert wakeup.quiet(QUIET) == [7]


def test_having_fallen_asleep_it_looks_until_those_have_ended_who_may_not_know() -> None:
    wakeup = ReaderWakeup()
    wakeup.stay_awake([7], 0.0)
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


def test_what_wakes_it_is_told_of_once() -> None:
    wakeup = ReaderWakeup()
    wakeup.fall_asleep([7, 8], 100, 0.0)
    assert wakeup.stay_awake([7, 9], 1.0) == [7]
    assert wakeup.stay_awake([7], 1.0) == []
    assert 7 in wakeup.awake()
    assert wakeup.due(100, 1.0) == {8}
    assert wakeup.stay_awake([8], 2.0) == [8]


def test_a_queue_that_is_read_no_more_is_looked_at_no_more() -> None:
    wakeup = ReaderWakeup()
    wakeup.stay_awake([1], 0.0)
    wakeup.fall_asleep([2], 100, 0.0)
    wakeup.forget([1, 2])
    assert wakeup.pause(0.0) == inf
    assert wakeup.stay_awake([2], 1.0) == []
