"""One thread at a time for each tenant, and others' beside it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenantry.dead_letters.postgres import Alone
from tenantry.messages.port import StoreUnavailableError
from tests.waiting import DEADLINE


def test_one_thread_after_the_other_is_let_in_and_nothing_is_kept_of_it() -> None:
    alone, inside, most = Alone(patience=DEADLINE), 0, 0

    def work(_number: int) -> None:
        nonlocal inside, most
        with alone.with_tenant("acme"):
            inside += 1
            most = max(most, inside)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert (most, alone._doors) == (1, {})


def test_others_do_not_wait_and_who_waits_for_too_long_is_told() -> None:
    alone = Alone(patience=0.0)
    told = threading.Event()

    def another() -> None:
        with alone.with_tenant("beta"):
            pass
        with pytest.raises(StoreUnavailableError, match="acme"), alone.with_tenant("acme"):
            pass
        told.set()

    with alone.with_tenant("acme"), ThreadPoolExecutor(1) as pool:
        pool.submit(another).result(DEADLINE)
    assert told.is_set()
    assert alone._doors == {}
