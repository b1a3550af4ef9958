"""An offset is stored only where every message below it is settled, whatever the order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.iggy.partition import OffsetWindow

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda one: (one[0], one[0] + one[1])),
    max_size=30,
)


@given(floor=st.integers(0, 20), settled=ranges)
def test_it_knows_what_a_set_knows(floor: int, settled: list[tuple[int, int]]) -> None:
    window = OffsetWindow(floor)
    known = set(range(floor))
    for start, end in settled:
        before = window.floor
        risen = window.settle(start, end)
        known |= set(range(start, end))
        assert risen == (window.floor > before)
        first_open = next(offset for offset in range(100) if offset not in known)
        assert window.floor == first_open
        assert window.beyond == len([offset for offset in known if offset > first_open])
        for offset in range(80):
            assert window.is_settled(offset) == (offset in known)
            assert window.skip(offset) == next(
                one for one in range(max(offset, window.floor), 200) if one not in known
            )


@given(floor=st.integers(0, 20), settled=ranges)
def test_ranges_are_apart_and_in_order(floor: int, settled: list[tuple[int, int]]) -> None:
    window = OffsetWindow(floor)
    for start, end in settled:
        window.settle(start, end)
    last = window.floor
    for start, end in window.ranges():
        assert last < start < end
        last = end
