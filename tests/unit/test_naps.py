"""When the embedded broker's reader sleeps, and when publishers must wake it."""

from __future__ import annotations

from tenantry.broker.postgres.naps import BEDS, QUIET, Naps


def test_a_queue_in_motion_is_watched_until_it_has_been_quiet() -> None:
    naps = Naps()
    assert naps.stir([7], 0.0) == []
    assert naps.watches(7)
    assert naps.tired(QUIET / 2) == []
    assert naps.tired(QUIET) == [7]
    assert naps.watches(7)
    naps.sleep([7])
    assert not naps.watches(7)
    assert not naps.awake


def test_what_wakes_it_has_it_leave_its_bed_once() -> None:
    naps = Naps()
    naps.stir([7, 7 + BEDS], 0.0)
    naps.sleep([7])
    assert naps.stir([7 + BEDS], 1.0) == [7]
    assert naps.stir([7], 1.0) == []
    assert naps.watches(7)


def test_a_bed_that_is_not_free_is_tried_again_and_watched_meanwhile() -> None:
    naps = Naps()
    naps.stir([3], 0.0)
    assert naps.tired(QUIET) == [3]
    naps.sleep([])
    assert naps.watches(3)
    assert naps.tired(QUIET * 1.5) == []
    assert naps.tired(QUIET * 2) == [3]
