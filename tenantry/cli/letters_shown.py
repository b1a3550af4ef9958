"""A dead letter's body for people: text where it is text, and not all of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tenantry.cli import output

_IN_A_TABLE: Final = 40
_MOST_CHARACTERS: Final = 4000


def preview_of(letter: Mapping[str, Any]) -> str:
    """Give the beginning of a body, for a cell of a table."""
    return _cut(_text(letter), _IN_A_TABLE)


def body_lines(letter: Mapping[str, Any]) -> Iterator[str]:
    """Give a body, line by line; control characters are escaped."""
    text = _cut(_text(letter), _MOST_CHARACTERS)
    yield ""
    yield from (output.clean(line) for line in text.split("\n"))


def _text(letter: Mapping[str, Any]) -> str:
    body = letter.get("body")
    if body is None:
        return f"({letter['size']} bytes, too many to be listed: they are in the queue)"
    try:
        return base64.b64decode(body).decode()
    except UnicodeDecodeError:
        return f"base64:{body}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
