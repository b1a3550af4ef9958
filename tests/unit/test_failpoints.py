"""Failpoints: read once, armed by the environment alone, and nothing at all where they are not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tenantry import failpoints
from tenantry.failpoints import FailpointError, FailpointsError, arm


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def passes(point: str, times: int) -> list[int]:
    """Pass a place so many times; tell at which of them it failed."""
    failed = []
    for number in range(1, times + 1):
        try:
            failpoints.reach(point)
        except FailpointError:
            failed.append(number)
    return failed


@pytest.mark.parametrize(
    ("specification", "failed"),
    [
        ("before_ack:fail", [1]),
        ("before_ack:fail@3", [3]),
        ("before_ack:fail@3+", [3, 4, 5]),
        ("before_ack:fail@2, before_ack:fail@4", [2, 4]),
        ("after_ack:fail", []),
        ("", []),
    ],
)
def test_a_place_fails_at_the_pass_it_is_armed_for(specification: str, failed: list[int]) -> None:
    arm(specification)
    assert passes("before_ack", 5) == failed


def test_without_a_specification_a_place_is_a_function_that_does_nothing() -> None:
    unarmed = failpoints.reach
    arm("before_commit:fail")
    assert failpoints.reach is not unarmed
    arm("")
    assert failpoints.reach is unarmed


@pytest.mark.parametrize(
    ("specification", "complaint"),
    [
        ("before_ack", "'before_ack' is not POINT:ACTION"),
        ("before_ack:fail@0", "is not POINT:ACTION"),
        ("nowhere:fail", "no place 'nowhere'; there are before_commit, "),
        ("before_ack:explode", "no action 'explode'; there are kill, stop, hang, fail"),
    ],
)
def test_a_specification_that_says_nothing_is_refused_in_one_line(
    specification: str, complaint: str
) -> None:
    with pytest.raises(FailpointsError) as refused:
        arm(specification)
    assert str(refused.value).startswith("TENANTRY_FAILPOINTS: ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_kill_ends_the_process_as_a_sigkill_does() -> None:
    code = (
        "from tenantry import failpoints as f; f.arm('after_commit:kill'); f.reach('after_commit')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL
