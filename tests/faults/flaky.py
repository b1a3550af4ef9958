"""A user's handler that needs several attempts for some messages."""

from __future__ import annotations

import zlib
from typing import Any

ONE_IN = 101


def handle(message: Any, cursor: Any) -> None:
    """Fail the first two attempts at one message in `ONE_IN`, before or after its work."""
    number = zlib.crc32(message.id.encode())
    fails = number % ONE_IN == 0 and message.attempt < 3
    if fails and number % 2:
        raise ValueError(message.attempt)
    cursor.execute("SELECT 1")
    if fails:
        raise ValueError(message.attempt)
