"""Finds the messages that the store can't hold, before the database is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

import orjson

from tenantry.messages import headers
from tenantry.messages.headers import JsonHeaders, UnfitHeaders
from tenantry.messages.port import Incoming

JSON: Final = "application/json"

NOT_JSON: Final = "not_json"
NUL: Final = "nul_in_text"
TOO_LARGE: Final = "too_large"
REFUSED: Final = "refused_by_database"
UNREADABLE: Final = "unreadable"
ID_TOO_LONG: Final = "id_too_long"
CONTENT_TYPE_TOO_LONG: Final = "content_type_too_long"
HEADERS_TOO_LARGE: Final = "headers_too_large"
HEADERS_TOO_DEEP: Final = "headers_too_deep"
INVALID_EVENT: Final = "invalid_cloudevent"

LONGEST_ID: Final = 1024
LONGEST_CONTENT_TYPE: Final = 1024
"""Bytes. AMQP's own 255 become up to four times as many if they are not UTF-8; an index of
PostgreSQL takes 2,704."""

_GROWS_LITTLE: Final = 1024
"""Bytes up to which a body stays within the limit, however its numbers are written out."""

_GROWS_LITTLE_AS_FLOATS: Final = 256 * 1024
"""The same if no number is beyond a float, and none has a negative exponent."""

_GREATEST_EXPONENT: Final = 131_072
_EXPONENT: Final = re.compile(rb"[0-9][eE][+-]?0*([0-9]+)")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""An unterminated string extends to the end, so that its end is not searched again and again."""

_EVENTS: Final = "application/cloudevents"
_VERSION: Final = "cloudEvents:specversion"
_OTHER_VERSION: Final = "cloudEvents_specversion"

_PLAIN: Final = frozenset(
    ("", "identity", "utf-8", "utf8", "us-ascii", "ascii", "7bit", "8bit", "binary")
)
"""Content encodings that leave text as it is; some clients name a character set there."""


class BodyKind(Enum):
    """How a message's body is stored, as far as this program can tell."""

    JSON = "json"
    BYTES = "bytes"
    DOUBTFUL = "doubtful"
    """Not JSON by our reading; the database, whose word counts, must be asked."""


def is_json(content_type: str | None) -> bool:
    """Return whether a content type asks for the message to be stored as JSON."""
    if content_type is None or content_type == JSON:
        return True
    return content_type.partition(";")[0].strip().lower() == JSON


def body_kind(message: Incoming) -> BodyKind:
    """Determine how a message's body is stored."""
    if not is_json(message.content_type) or (message.headers and _is_encoded(message)):
        return BodyKind.BYTES
    body = message.body
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return BodyKind.DOUBTFUL
    # An escaped NUL is JSON, but `jsonb` can't hold it.
    return BodyKind.DOUBTFUL if b"\\u0000" in body else BodyKind.JSON


def may_be_event(message: Incoming) -> bool:
    """Return whether a message may be a CloudEvent, at next to no cost if it is none."""
    kind, given = message.content_type, message.headers
    if kind is not None and kind != JSON and kind[:23].lower() == _EVENTS:
        return True
    return given is not None and (_VERSION in given or _OTHER_VERSION in given)


def flaw(message: Incoming, max_bytes: int) -> tuple[str, str] | None:
    """Return reason and error of a message that can't be stored whatever its body, or None."""
    if len(message.body) > max_bytes:
        size = len(message.body)
        return TOO_LARGE, f"the message has {size} bytes; {max_bytes} are allowed"
    if message.id is not None and "\x00" in message.id:
        return NUL, "the message id has a NUL character"
    if message.content_type is not None and "\x00" in message.content_type:
        return NUL, "the content type has a NUL character"
    if message.id is not None and _bytes(message.id) > LONGEST_ID:
        return ID_TOO_LONG, f"the id has {_bytes(message.id)} bytes; {LONGEST_ID} are allowed"
    if message.content_type is not None and _bytes(message.content_type) > LONGEST_CONTENT_TYPE:
        size = _bytes(message.content_type)
        return (
            CONTENT_TYPE_TOO_LONG,
            f"the content type has {size} bytes; {LONGEST_CONTENT_TYPE} are allowed",
        )
    return _flaw_of_headers(message.headers) if message.headers is not None else None


def flaw_of_numbers(body: bytes, max_bytes: int, *, doubtful: bool) -> tuple[str, str] | None:
    """Return reason and error of JSON whose numbers, as the database writes them, are too long.

    `1e-9999` is ten thousand digits there. A `doubtful` body may have numbers beyond a float.
    """
    if len(body) <= _GROWS_LITTLE:
        return None
    may_grow = doubtful or len(body) > _GROWS_LITTLE_AS_FLOATS or b"e-" in body or b"E-" in body
    if not may_grow:
        return None
    # Most apparent exponents are in strings; to leave out strings takes longer, so it comes second.
    digits = _written_out(body)
    if len(body) + digits > max_bytes:
        digits = _written_out(_STRING.sub(b"", body))
    if len(body) + digits <= max_bytes:
        return None
    return (
        TOO_LARGE,
        f"its numbers, written out, have {digits} digits; {max_bytes} bytes are allowed in all",
    )


def _written_out(body: bytes) -> int:
    return sum(min(int(exponent[:7]), _GREATEST_EXPONENT) for exponent in _EXPONENT.findall(body))


def too_large(size: int) -> tuple[str, str]:
    """Return reason and error of headers of so many bytes."""
    return (
        HEADERS_TOO_LARGE,
        f"the headers have {size} bytes; {headers.MOST_BYTES} are allowed",
    )


def shown(identity: str | None) -> str | None:
    """Return an id for journal, index and log; one beyond the limit is cut there."""
    if identity is None or len(identity) <= LONGEST_ID:
        return identity
    return f"{identity[:LONGEST_ID]}..."


def _flaw_of_headers(given: Mapping[str, object]) -> tuple[str, str] | None:
    match given:
        case UnfitHeaders():
            return given.flaw
        case JsonHeaders():
            text = given.text
            if not text.startswith("{"):
                return UNREADABLE, "the headers are no JSON object"
            if len(text) > headers.MOST_BYTES // 4 and _bytes(text) > headers.MOST_BYTES:
                return too_large(_bytes(text))
            nested = text.count("{") + text.count("[")
            if nested > headers.DEEPEST and headers.depth(text) > headers.DEEPEST:
                return (
                    HEADERS_TOO_DEEP,
                    f"the headers have more than {headers.DEEPEST} levels within one another",
                )
    return None


def _is_encoded(message: Incoming) -> bool:
    encoding = (message.headers or {}).get(headers.CONTENT_ENCODING)
    return isinstance(encoding, str) and encoding.strip().lower() not in _PLAIN


def _bytes(text: str) -> int:
    """Count a text's bytes in UTF-8, or a short text's characters, which is faster."""
    return len(text) if len(text) < 256 else len(text.encode(errors="surrogatepass"))
