"""Waiting for something to become so: with a deadline, and no longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 90.0
"""Seconds that are given to whatever has to happen, on however busy a machine.

Not what it should take, nor what is promised of it: a test that waits for less fails where two
processors have ten things to do. Less only where it is right that nothing comes.
"""

LEAST, MOST = 0.005, 0.25
"""Seconds between two looks."""


def eventually(look: Callable[[], T], *, timeout: float = DEADLINE, what: str = "") -> T:
    """Give what `look` returns once that is true; fail when it has not become so in time."""
    began = time.monotonic()
    until = began + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:g} s: {what or look}")
        # What is waited for needs the processor, too: looks get rarer the longer it takes.
        time.sleep(min(MOST, max(LEAST, (time.monotonic() - began) / 10)))
