"""Which messages the store can take, found out before the database is asked."""

from __future__ import annotations

from enum import Enum
from typing import Final

import orjson

from tenantry.messages.port import Incoming

JSON: Final = "application/json"

NOT_JSON: Final = "not_json"
NUL: Final = "nul_in_text"
TOO_LARGE: Final = "too_large"
REFUSED: Final = "refused_by_database"


class Verdict(Enum):
    """What a look at a message tells."""

    JSON = "json"
    BYTES = "bytes"
    DOUBTFUL = "doubtful"
    """Not JSON by our reading; the database, whose word counts, is to be asked."""


def is_json(content_type: str | None) -> bool:
    """Tell whether a content type asks for the message to be stored as JSON."""
    if content_type is None or content_type == JSON:
        return True
    return content_type.partition(";")[0].strip().lower() == JSON


def look(message: Incoming) -> Verdict:
    """Judge a message's body."""
    if not is_json(message.content_type):
        return Verdict.BYTES
    body = message.body
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return Verdict.DOUBTFUL
    # An escaped NUL is JSON, but nothing `jsonb` can hold.
    return Verdict.DOUBTFUL if b"\\u0000" in body else Verdict.JSON


def flaw(message: Incoming, max_bytes: int) -> tuple[str, str] | None:
    """Give reason and error of a message that can't be stored whatever its body says."""
    if len(message.body) > max_bytes:
        size = len(message.body)
        return TOO_LARGE, f"the message has {size} bytes; {max_bytes} are allowed"
    if message.id is not None and "\x00" in message.id:
        return NUL, "the message id has a NUL character"
    if message.content_type is not None and "\x00" in message.content_type:
        return NUL, "the content type has a NUL character"
    return None
