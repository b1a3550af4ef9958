"""Tells whether a connection that nobody uses has died: its server says so, to whoever looks."""

from __future__ import annotations

import select
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
