"""A user's handler, which some messages are poison to."""

from __future__ import annotations

from typing import Any


class PoisonError(Exception):
    """What the handler can't take."""


def handle(message: Any, cursor: Any) -> None:
    """Touch the database as handlers do; fail where the message says `poison`."""
    if isinstance(message.payload, dict) and "poison" in message.payload:
        raise PoisonError(f"attempt {message.attempt}")
    cursor.execute("SELECT 1")
