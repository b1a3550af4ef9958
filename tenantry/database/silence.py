"""Notices a server that has fallen silent: it holds its connections open and answers nothing.

Neither the server's own limits of time help then (it does not count any more) nor TCP's (the
kernel acknowledges for a process that is stopped). So whoever has waited a while looks whether
the server still answers to anybody; if not, the wait ends, and the connection with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

import psycopg

PROBE_AFTER: Final = 5.0
"""Seconds without an answer after which one looks, and looks again."""

PROBE_TIMEOUT: Final = 5
"""Seconds a server has to let a new connection in, whole ones as libpq counts them."""

ANSWER_LASTS: Final = 2.0
"""Seconds in which one look does for all who wait."""

MARGIN: Final = 5.0
"""Seconds beyond the server's own limit of a statement after which its word is not waited for."""


class Silence:
    """Tells whether a server is silent; one look at a time, shared by all. From any thread."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """`connect` makes a connection within `PROBE_TIMEOUT` seconds, or raises."""
        self._connect = connect
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._silent = False

    def found(self) -> bool:
        """Look, unless somebody has just now; tell whether nobody gets an answer."""
        with self._lock:
            if time.monotonic() - self._looked_at >= ANSWER_LASTS:
                self._silent = self._look()
                self._looked_at = time.monotonic()
            return self._silent

    def _look(self) -> bool:
        try:
            self._connect().close()
        except psycopg.errors.ConnectionTimeout:
            return True
        except psycopg.Error:
            # Refused, full, starting: whatever it is, it is an answer.
            return False
        return False


def bounded(
    steps: Generator[Any, Any, Any],
    *,
    silence: Silence,
    longest: float | None,
    give_up: Callable[[], None],
) -> Generator[Any, Any, Any]:
    """Go along with psycopg's waiting, step by step, and end it at a silent server.

    Raises `psycopg.OperationalError` then, after `give_up`, and also where the answer takes
    `longest` seconds, if that is not None. The outcome of the statement is unknown.
    """
    began = asked = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready:
                now = time.monotonic()
                if longest is not None and now - began > longest:
                    raise _end(steps, give_up, f"no answer for {longest:g} seconds")
                if now - asked > PROBE_AFTER:
                    if silence.found():
                        raise _end(steps, give_up, "the server has fallen silent")
                    asked = time.monotonic()
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _end(
    steps: Generator[Any, Any, Any], give_up: Callable[[], None], problem: str
) -> psycopg.OperationalError:
    steps.close()
    give_up()
    return psycopg.OperationalError(f"{problem}: the connection was given up")
