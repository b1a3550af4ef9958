"""Waiting for something to become so: with a deadline, and no longer than it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, timeout: float = 10.0, what: str = "") -> T:
    """Give what `look` returns once that is true; fail when it has not become so in time."""
    until = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:g} s: {what or look}")
        time.sleep(0.005)
