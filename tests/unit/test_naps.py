"""When the embedded broker's reader sleeps, and when publishers must wake it."""

from __future__ import annotations

from math import inf

from tenantry.broker.postgres.naps import LONGEST_PAUSE, LOOK, QUIET, Naps


def test_a_queue_in_motion_is_watched_until_it_has_been_quiet() -> None:
    naps = Naps()
    assert naps.stir([7], 0.0) == []
    assert naps.watches(7)
    assert naps.pause(0.0) == LOOK
    assert naps.tired(QUIET / 2) == []
    assert naps.tired(QUIET) == [7]


def test_having_lain_down_it_looks_until_those_have_ended_who_may_not_know() -> None:
    naps = Naps()
    naps.stir([7], 0.0)
    naps.lie_down([7], 100, 1.0)
    assert not naps.watches(7)
    # At once, since somebody may have come in between; then less and less often.
    assert naps.dozing(1.0)
    assert naps.look(99, 1.0) == {7}
    assert not naps.dozing(1.0 + LOOK)
    assert naps.dozing(1.0 + 2 * LOOK)
    # A last time, with all of them ended before.
    assert naps.look(100, 1.1) == {7}
    assert not naps.dozing(inf)
    assert naps.pause(1.1) == inf


def test_a_transaction_that_stays_open_has_it_look_no_more_often_than_for_every_queue() -> None:
    naps = Naps()
    naps.lie_down([7], 100, 0.0)
    now, looks = 0.0, 0
    while (pause := naps.pause(now)) < inf:
        now += pause
        assert naps.look(50, now) == {7}
        looks += 1
    assert looks < 10
    assert LONGEST_PAUSE / 2 < now < 2 * LONGEST_PAUSE


def test_what_wakes_it_has_it_get_up_once() -> None:
    naps = Naps()
    naps.lie_down([7, 8], 100, 0.0)
    assert naps.stir([7, 9], 1.0) == [7]
    assert naps.stir([7], 1.0) == []
    assert naps.watches(7)
    assert naps.look(100, 1.0) == {8}
    assert naps.stir([8], 2.0) == [8]


def test_a_queue_that_is_read_no_more_is_looked_at_no_more() -> None:
    naps = Naps()
    naps.stir([1], 0.0)
    naps.lie_down([2], 100, 0.0)
    naps.forget([1, 2])
    assert naps.pause(0.0) == inf
    assert naps.stir([2], 1.0) == []
