"""Detects idle connections that have died, and servers that have fallen silent.

A server that ends an idle connection says so on its socket. A silent server keeps its connections
open and answers nothing. Its own time limits don't help then (the server does not run), nor do
TCP's (the kernel acknowledges for a stopped process). So a session that has waited for a while
checks whether the server still answers a new connection; if not, the wait and the connection end.
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
"""Most reads of unsolicited messages: a notice, a parameter, a closing error."""


def has_died(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server has ended an idle connection; sends nothing, waits for nothing.

    A server that has vanished without closing the connection is not noticed.
    """
    return connection.closed or has_ended(connection.pgconn)


def has_ended(pgconn: pq.abc.PGconn) -> bool:
    """Tell the same of a libpq connection that is still open on this side."""
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
"""Seconds without an answer before the server is probed, and between probes."""

PROBE_TIMEOUT: Final = 5
"""Seconds a server has to accept a new connection; whole seconds, as libpq counts them."""

ANSWER_LASTS: Final = 2.0
"""Seconds for which one probe's result serves all waiting sessions."""

MARGIN: Final = 5.0
"""Seconds beyond the server's own statement timeout after which the wait is given up."""


class GivenUpError(psycopg.OperationalError):
    """The server did not answer in time; another connection would not fare better."""


class Silence:
    """Tells whether a server is silent; one probe at a time, shared by all. From any thread."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """`connect` makes a connection within `PROBE_TIMEOUT` seconds, or raises."""
        self._connect = connect
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._silent = False

    def found(self) -> bool:
        """Probe, unless another thread just has; tell whether a new connection gets no answer."""
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
    """Drive psycopg's wait, step by step, and end it once the server is found `silent`.

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
