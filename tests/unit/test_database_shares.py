"""How the connections of a server are shared out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.database.errors import DatabaseUnfitError
from tenantry.database.server import LEAST, Room, Shares, divide

WANTED = Shares(pool=20, pages=8, front_pool=20, front_pages=8, handlers=10)


def room(free: int) -> Room:
    return Room(free=free, narrowest="max_connections = 17")


def test_where_there_is_enough_everybody_gets_what_is_wanted() -> None:
    assert divide(room(97), WANTED) == WANTED


def test_too_few_to_work_with_are_refused_with_a_remedy() -> None:
    with pytest.raises(DatabaseUnfitError) as caught:
        divide(room(LEAST.total - 1), replace(WANTED, handlers=0))
    assert "max_connections = 17" in str(caught.value)
    assert f"{LEAST.total} are needed" in str(caught.value)
    assert "raise max_connections" in str(caught.value)


@given(free=st.integers(0, 500), pool=st.integers(2, 500), handlers=st.integers(0, 100))
def test_no_more_is_taken_than_is_free_and_something_is_left(
    free: int, pool: int, handlers: int
) -> None:
    wanted = replace(WANTED, pool=pool, handlers=handlers)
    least = LEAST.total + min(1, handlers)
    if free < least:
        with pytest.raises(DatabaseUnfitError):
            divide(room(free), wanted)
        return
    shares = divide(room(free), wanted)
    assert least <= shares.total <= min(wanted.total, free)
    assert shares.total == least or shares.total <= free - max(2, free // 8)
    assert (shares.handlers == 0) == (handlers == 0)
    for name in ("pool", "pages", "front_pool", "front_pages", "handlers"):
        assert getattr(shares, name) <= getattr(wanted, name)
    if wanted.total <= free - max(2, free // 8):
        assert shares == wanted
