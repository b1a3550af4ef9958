"""JSON cut out of JSON: what is passed on stays the text that it was, to the last digit.

Numbers beyond 64 bits and long decimals lose digits as Python's or orjson's floats, so what a
client has sent is never written anew.
"""

from __future__ import annotations

import json
import re
from typing import Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Numbers as text: this decoder only finds where a value ends.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)


def members(body: bytes, name: str) -> list[bytes]:
    """Cut the text of the member `name` out of an object, or out of every object of an array.

    `body` has been read as JSON, and every object has the member. Raises `json.JSONDecodeError`
    where nesting is deeper than this interpreter follows.
    """
    text = body.decode()
    try:
        at = _skip(text, 0)
        if text[at] == "{":
            return [_member(text, at, name)[0]]
        found = []
        at = _skip(text, at + 1)
        while text[at] != "]":
            member, at = _member(text, at, name)
            found.append(member)
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except RecursionError:
        raise _too_deep(text) from None
    return found


def elements(body: bytes) -> list[bytes]:
    """Cut an array into the texts of its elements. As `members`."""
    text = body.decode()
    found = []
    try:
        at = _skip(text, _skip(text, 0) + 1)
        while text[at] != "]":
            _, end = _DECODER.raw_decode(text, at)
            found.append(text[at:end].encode())
            at = _skip(text, end)
            if text[at] == ",":
                at = _skip(text, at + 1)
    except RecursionError:
        raise _too_deep(text) from None
    return found


def _too_deep(text: str) -> json.JSONDecodeError:
    return json.JSONDecodeError("nested too deeply", text, 0)


def _member(text: str, at: int, name: str) -> tuple[bytes, int]:
    """Give the member's text, of the last one where a name comes twice, and the object's end."""
    found = ""
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, begin)
        if key == name:
            found = text[begin:end]
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found.encode(), at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
