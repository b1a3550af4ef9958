"""Handlers: found by their names, run on threads of their own, retried by a policy."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.handlers.attempts import RetryPolicy, in_words
from tenantry.handlers.connection import HandlerMisuseError, _refuse_to_end
from tenantry.handlers.handler_pool import Call, HandlerHangsError, HandlerPool
from tenantry.handlers.resolve import HandlerResolveError, resolve
from tests.waiting import DEADLINE, eventually

FOUND = """
import asyncio

def good(message, cursor): pass
def more(message, cursor, extra=None): pass
def fewer(message): pass
async def later(message, cursor): pass
def some(message, cursor): yield
class Handlers:
    def method(self, message, cursor): pass
    def __call__(self, message, cursor): pass
instance = Handlers()
number = 7
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "found_here.py").write_text(FOUND)
    (tmp_path / "broken_here.py").write_text("raise RuntimeError('on\\nimport')")
    (tmp_path / "needs_more.py").write_text("import not_to_be_found")
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["good", "more", "instance", "instance.method"])
def test_a_function_is_found_also_in_the_working_directory(modules: Path, name: str) -> None:
    found = resolve({"events": f"found_here:{name}"})
    assert callable(found["events"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere_to_be_found.at_all:f", "there is no module 'nowhere_to_be_found'"),
        ("needs_more:f", "needs_more can't be imported: there is no module 'not_to_be_found'"),
        ("broken_here:f", "broken_here can't be imported: RuntimeError: on import"),
        ("found_here:nobody", "found_here has no 'nobody'"),
        ("found_here:number", "is no function but int"),
        ("found_here:fewer", "must take (message, cursor)"),
        ("found_here:later", "must be a plain function"),
        ("found_here:some", "must be a plain function"),
    ],
)
def test_what_is_no_handler_is_refused_with_the_reason(
    modules: Path, text: str, reason: str
) -> None:
    with pytest.raises(HandlerResolveError) as caught:
        resolve({"events": text})
    assert caught.value.topic == "events"
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    ["COMMIT", " commit;", "/* x */ ROLLBACK", "-- x\nend", "begin", "ROLLBACK WORK", "ABORT",
     "START TRANSACTION", "PREPARE TRANSACTION 'x'", b"commit"],
)  # fmt: skip
def test_what_would_end_the_transaction_is_refused(query: object) -> None:
    with pytest.raises(HandlerMisuseError, match="may not begin or end"):
        _refuse_to_end(query)


@pytest.mark.parametrize(
    "query",
    ["SELECT 'COMMIT'", "ROLLBACK TO a", "rollback work to savepoint a", "SAVEPOINT a", "RELEASE a",
     "SELECT commit FROM git", "ENDING", "PREPARE p AS SELECT 1"],
)  # fmt: skip
def test_what_does_not_end_the_transaction_is_not(query: object) -> None:
    _refuse_to_end(query)


@given(
    attempts=st.integers(1, 100),
    pauses=st.lists(st.floats(0.01, 1000), min_size=1, max_size=10).map(tuple),
    attempt=st.integers(1, 100),
)
def test_a_pause_is_never_shorter_than_configured_and_the_last_one_repeats(
    attempts: int, pauses: tuple[float, ...], attempt: int
) -> None:
    wanted = pauses[min(attempt, len(pauses)) - 1]
    assert wanted <= RetryPolicy(attempts=attempts, pauses=pauses).pause(attempt) <= wanted * 1.2


def wrongly(text: str) -> None:
    raise ValueError(text)


def test_an_error_is_told_on_one_line_with_its_place() -> None:
    with pytest.raises(ValueError, match="a") as caught:
        wrongly("a\nb\0c")
    assert in_words(caught.value).startswith("ValueError: a b\ufffdc (test_handlers.py:")
    assert in_words(caught.value).endswith(" in wrongly)")
    assert in_words(KeyError()) == "KeyError"
    assert len(in_words(ValueError("x" * 10_000))) == 500


# The pool, with a cursor that is none.

CURSOR: Any = SimpleNamespace(misuse=lambda: None, touched=False)


def calls(*handlers: Any) -> list[Call]:
    message: Any = SimpleNamespace(topic="events")
    return [Call(handler, message) for handler in handlers]


def fine(message: object, cursor: object) -> None:
    pass


def wrong(message: object, cursor: Any) -> None:
    cursor.touched = True
    raise SystemExit(3)


def harmless(message: object, cursor: object) -> None:
    raise SystemExit(4)


def later(seconds: float = 60) -> float:
    return monotonic() + seconds


def test_calls_are_made_in_order_up_to_the_one_that_fails() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    ran = pool.run(calls(fine, fine, wrong, fine), CURSOR, until=later())
    assert (ran.count, type(ran.error)) == (2, SystemExit)
    assert pool.run(calls(fine, fine), CURSOR, until=later()).count == 2
    pool.close()


def test_a_call_that_fails_before_it_touches_the_database_stops_no_other() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    ran = pool.run(calls(fine, harmless, fine, wrong, fine), CURSOR, until=later())
    assert (ran.count, type(ran.error), list(ran.harmless)) == (3, SystemExit, [1])
    pool.close()


def test_an_error_beside_the_handlers_is_the_attempts_and_keeps_nobody_waiting() -> None:
    def hears(*_: object) -> None:
        raise RuntimeError("beside")

    pool = HandlerPool(places=1, timeout=DEADLINE, on_handled=hears)
    for _ in range(2):
        ran = pool.run(calls(fine, fine), CURSOR, until=later())
        assert (ran.count, str(ran.error)) == (0, "beside")
    pool.close()


def test_after_its_time_one_call_is_made_and_no_more() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    assert pool.run(calls(fine, fine), CURSOR, until=later(-1)).count == 1
    pool.close()


def test_one_thread_serves_one_run_after_another_and_ends_when_closed() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    threads = []
    for _ in range(5):
        pool.run(calls(lambda m, c: threads.append(threading.current_thread())), CURSOR,
                 until=later())  # fmt: skip
    assert len(set(threads)) == 1
    pool.close()
    eventually(lambda: not threads[0].is_alive())


def test_a_thread_whose_handler_hangs_makes_no_further_call() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    assert pool.run(calls(fine), CURSOR, until=later()).count == 1
    pool._timeout = 1  # its thread has begun
    wake, made = threading.Event(), []
    hanging = calls(fine, lambda m, c: wake.wait(DEADLINE), lambda m, c: made.append(1))
    with pytest.raises(HandlerHangsError, match="it is in <lambda>") as caught:
        pool.run(hanging, CURSOR, until=later())
    assert caught.value.count == 1
    assert pool.abandoned == 1
    pool._timeout = DEADLINE
    assert pool.run(calls(fine), CURSOR, until=later()).count == 1
    wake.set()
    eventually(lambda: pool.abandoned == 0)
    assert made == []
    pool.close()


def test_there_are_no_more_places_than_wanted() -> None:
    pool = HandlerPool(places=1, timeout=DEADLINE)
    with pool.place("acme", 0) as first, pool.place("acme", 0) as second:
        assert (first, second) == (True, False)
    with pool.place("acme", 0) as again:
        assert again
