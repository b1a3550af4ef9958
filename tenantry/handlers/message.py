"""What a handler is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as a handler sees it: the row that will be stored, and which attempt this is.

    `payload` is the parsed JSON of a message that is stored as JSON, `body` the bytes of any other;
    the one that does not apply is None. `attempt` is 1 at first.
    """

    id: str
    tenant_id: str
    topic: str
    partition: int
    payload: Any
    body: bytes | None
    content_type: str | None
    headers: Mapping[str, object]
    attempt: int


Handler: TypeAlias = Callable[[Message, "psycopg.Cursor[Any]"], object]
"""`function(message, cursor)`; what it returns is dropped, what it raises is a failed attempt."""
