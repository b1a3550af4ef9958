"""Places in the code where a test can make the daemon fail, at exactly that moment.

`TENANTRY_FAILPOINTS=before_ack:kill@17` kills the daemon the 17th time it is about to acknowledge.
Only the environment, read once at start, arms failpoints, and the log says so. Unarmed, `reach` is
a function that does nothing.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

VARIABLE: Final = "TENANTRY_FAILPOINTS"

POINTS: Final[Mapping[str, str]] = {
    "before_commit": "a batch is about to be stored",
    "after_commit": "a batch is committed, and nobody knows yet",
    "before_ack": "on the broker's thread: acks and rejects are about to be sent",
    "after_ack": "on the broker's thread: they have been handed to the connection",
    "password_pending": "a new password is about to be set on the broker",
    "password_set": "the broker has it, and the journal does not yet",
    "before_append": "events are about to be written to the journal",
    "after_append": "events are in the journal, and nobody knows yet",
    "archive_written": "of an archive all is written, and perhaps not on the disk",
    "archive_synced": "it is on the disk, not read back, and not under its name",
    "archive_named": "it has its name, and what sums it up is missing",
    "archive_complete": "it is complete, and its part is still in the journal",
    "before_detach": "a part is about to be taken out of the journal",
    "after_detach": "it was, and that is about to be committed",
}
"""The places, and the situation at each."""

_SPEC: Final = re.compile(r"(?P<point>\w+):(?P<action>\w+)(@(?P<hit>[1-9]\d{0,8})(?P<on>\+)?)?")


class FailpointError(Exception):
    """The error that the action `fail` raises."""


class FailpointsError(ValueError):
    """`TENANTRY_FAILPOINTS` can't be parsed; one line that says what is allowed."""


def _pass(_point: str) -> None:
    pass


reach: Callable[[str], None] = _pass
"""Pass a place; call it by the module's name, since `arm` puts another function here."""


def arm(specification: str) -> None:
    """Make places fail: `POINT:ACTION[@HIT]`, several with commas between; empty disarms all.

    `kill` ends the process as SIGKILL does, `stop` freezes it as SIGSTOP does, `hang` blocks the
    calling thread for good, `fail` raises `FailpointError`. HIT is the number of the pass at which
    the action happens, 1 by default; with a `+` behind, it happens at every pass from then on.
    Raises `FailpointsError`.
    """
    global reach  # noqa: PLW0603 - so that an unarmed point costs a call, and no check
    failpoints = [_parse(one.strip()) for one in specification.split(",") if one.strip()]
    if not failpoints:
        reach = _pass
        return
    log.warning("failpoints.armed", failpoints=specification, remedy=f"unset {VARIABLE}")
    reach = _Armed(failpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failpoint:
    point: str
    act: Callable[[str], None]
    hit: int
    onwards: bool


class _Armed:
    """Counts the passes of each place, for all threads, and acts when one is due."""

    def __init__(self, failpoints: list[_Failpoint]) -> None:
        self._failpoints = failpoints
        self._passes: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        with self._lock:
            self._passes[point] += 1
            passed = self._passes[point]
        for one in self._failpoints:
            if one.point == point and (passed == one.hit or (one.onwards and passed > one.hit)):
                log.warning("failpoint.reached", point=point, passed=passed)
                one.act(point)


def _parse(text: str) -> _Failpoint:
    match = _SPEC.fullmatch(text)
    if match is None:
        raise FailpointsError(f"{VARIABLE}: {text!r} is not POINT:ACTION or POINT:ACTION@HIT")
    point, action = match["point"], match["action"]
    if point not in POINTS:
        raise FailpointsError(f"{VARIABLE}: no place {point!r}; there are {', '.join(POINTS)}")
    if action not in _ACTIONS:
        raise FailpointsError(f"{VARIABLE}: no action {action!r}; there are {', '.join(_ACTIONS)}")
    return _Failpoint(
        point=point,
        act=_ACTIONS[action],
        hit=int(match["hit"] or 1),
        onwards=match["on"] is not None,
    )


def _kill(_point: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(_point: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang(_point: str) -> None:
    threading.Event().wait()


def _fail(point: str) -> None:
    raise FailpointError(f"failpoint {point}")


_ACTIONS: Final = {"kill": _kill, "stop": _stop, "hang": _hang, "fail": _fail}
