"""Whether a server lives: connections at rest that have died, and servers that have fallen silent.

A server that ends a connection at rest says so, to whoever reads its socket. One that has fallen
silent holds its connections open and answers nothing: neither its own limits of time help then (it
does not count any more) nor TCP's (the kernel acknowledges for a process that is stopped). So a
session that has waited for a while looks whether the server still answers a new connection; if not,
the wait ends, and the connection with it.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Final

import psycopg
from psycopg import pq

_MOST: Final = 16
"""Times something is read that came by itself: a notice, a parameter, a last word."""


def has_died(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server has ended a connection at rest; asks it nothing, waits for nothing.

    A server that is gone without a word is not noticed.
    """
    return connection.closed or has_ended(connection.pgconn)


def has_ended(pgconn: pq.abc.PGconn) -> bool:
    """Tell the same of what is below a connection that is open as far as we know."""
    looking = select.poll()
    looking.register(pgconn.socket, select.POLLIN)
    try:
        for _ in range(_MOST):
            if not looking.poll(0):
                return False
            pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


PROBE_AFTER: Final = 5.0
"""Seconds without an answer after which one looks, and looks again."""

PROBE_TIMEOUT: Final = 5
"""Seconds a server has to let a new connection in, whole ones as libpq counts them."""

ANSWER_LASTS: Final = 2.0
"""Seconds in which one look does for all sessions that wait."""

MARGIN: Final = 5.0
"""Seconds beyond the server's own limit of a statement after which its word is not waited for."""


class GivenUpError(psycopg.OperationalError):
    """The server's word has been waited for, for long; it will not come on another connection."""


class Silence:
    """Tells whether a server is silent; one look at a time, shared by all. From any thread."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """`connect` makes a connection within `PROBE_TIMEOUT` seconds, or raises."""
        self._connect = connect
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._silent = False

    def found(self) -> bool:
        """Look, unless another thread just has; tell whether a new connection gets no answer."""
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
    silent: Callable[[], bool],
    longest: float | None,
    give_up: Callable[[], None],
) -> Generator[Any, Any, Any]:
    """Go along with psycopg's waiting, step by step, and end it at a server found `silent`.

    Raises `GivenUpError` then, after `give_up`, and also where the answer takes
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
                    if silent():
                        raise _end(steps, give_up, "the server has fallen silent")
                    asked = time.monotonic()
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _end(
    steps: Generator[Any, Any, Any], give_up: Callable[[], None], problem: str
) -> GivenUpError:
    steps.close()
    give_up()
    return GivenUpError(f"{problem}: the connection was given up")
