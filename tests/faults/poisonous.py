"""A user's handler that fails on poison messages."""

from __future__ import annotations

from typing import Any


class PoisonError(Exception):
    """The handler can't process the message."""


def handle(message: Any, cursor: Any) -> None:
    """Touch the database as handlers do; fail if the message has the key `poison`."""
    if isinstance(message.payload, dict) and "poison" in message.payload:
        raise PoisonError(f"attempt {message.attempt}")
    cursor.execute("SELECT 1")
