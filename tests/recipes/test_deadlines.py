"""What a test waits for has the deadline that all have: a short one fails on a busy machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import DEADLINE

TESTS = Path(__file__).parents[1]
RUNS_OUT = 2.0
"""Seconds up to which a wait is one that shall run out."""

WAITS = frozenset({"wait", "join", "result", "settimeout", "wait_started", "eventually"})
CLOCKS = ("monotonic()", "perf_counter()", "time.time()")


def short(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and RUNS_OUT < node.value < DEADLINE
    )


def deadlines(tree: ast.AST) -> Iterator[int]:
    """Give the lines of what is given a number of seconds of its own."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[only]):
                if name in WAITS and short(only):
                    yield node.lineno
            case ast.keyword(arg="timeout", value=value) if short(value):
                yield node.value.lineno
            case ast.Compare(left=left, ops=[*_, ast.Lt() | ast.LtE()], comparators=[*_, most]):
                if short(most) and any(clock in ast.unparse(node) for clock in CLOCKS):
                    yield left.lineno


def test_each_wait_has_the_deadline_that_all_have() -> None:
    own = [
        f"{file.relative_to(TESTS.parent)}:{line}"
        for file in sorted(TESTS.rglob("test_*.py"))
        for line in deadlines(ast.parse(file.read_text("utf-8")))
    ]
    assert not own, f"give them tests.waiting.DEADLINE, and no number: {', '.join(own)}"


@pytest.mark.parametrize(
    "wrong",
    ["thread.join(10)", "eventually(look, timeout=30)", "assert time.monotonic() - began < 20",
     "assert 1 <= monotonic() - began < 20", "assert gate.wait(5.0)"],
)  # fmt: skip
def test_a_number_of_seconds_is_found(wrong: str) -> None:
    assert list(deadlines(ast.parse(wrong))) == [1]


@pytest.mark.parametrize(
    "right",
    ["thread.join(DEADLINE)", "stopped = thread.join(0.5)", "assert monotonic() - began >= 3",
     "publish(message, timeout=0.2)", "store.wait_for_events(0, timeout=3600)"],
)  # fmt: skip
def test_what_shall_run_out_is_fine(right: str) -> None:
    assert list(deadlines(ast.parse(right))) == []
