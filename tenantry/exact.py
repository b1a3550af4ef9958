"""JSON that is passed on unchanged: reading changes no number.

Numbers beyond 64 bits and long decimals lose digits as Python's or orjson's floats, so what a
client has sent is cut out of its JSON, and never written anew.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

_DEEPEST: Final = 100
"""Levels of nesting that are parsed; deeper parts stay text."""

_PART: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_LONGEST_INT: Final = 4000

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Numbers as text: this decoder only finds where a value ends.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)


class Json(str):
    """A piece of JSON passed on as it is: a number that Python would write otherwise, say."""

    __slots__ = ()


def loads(text: str) -> Any:
    """Read JSON. Raises `ValueError`."""
    cut: dict[str, Json] = {}
    found = json.loads(
        _cut(text, secrets.token_hex(16), cut), parse_int=_whole, parse_float=_fraction
    )
    if not cut:
        return found
    return _each(found, lambda one: cut.get(one, one) if isinstance(one, str) else one)


def dumps(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Write JSON, on one line without `indent`."""
    kept: list[Json] = []
    mark = secrets.token_hex(16)

    def set_aside(one: object) -> object:
        if not isinstance(one, Json):
            return one
        kept.append(one)
        return f"{mark}:{len(kept) - 1}"

    text = json.dumps(_each(value, set_aside), indent=indent, ensure_ascii=ascii_only)
    return re.sub(rf'"{mark}:(\d+)"', lambda found: kept[int(found[1])], text) if kept else text


def _whole(text: str) -> int | Json:
    if len(text) > _LONGEST_INT or text == "-0":
        return Json(text)
    return int(text)


def _fraction(text: str) -> float | Json:
    near = float(text)
    return near if repr(near) == text else Json(text)


def _cut(text: str, mark: str, cut: dict[str, Json]) -> str:
    """Replace every piece that is nested too deeply by a name."""
    if text.count("[") + text.count("{") < _DEEPEST:
        return text
    parts: list[str] = []
    depth = begin = done = 0
    for found in _PART.finditer(text):
        match found[0]:
            case "[" | "{":
                depth += 1
                if depth == _DEEPEST:
                    begin = found.start()
            case "]" | "}":
                if depth == _DEEPEST:
                    name = f"{mark}:{len(cut)}"
                    cut[name] = Json(text[begin : found.end()])
                    parts += (text[done:begin], f'"{name}"')
                    done = found.end()
                depth -= 1
    return "".join((*parts, text[done:]))


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change every leaf of a document."""
    match value:
        case dict():
            return {key: _each(one, change) for key, one in value.items()}
        case list() | tuple():
            return [_each(one, change) for one in value]
        case _:
            return change(value)


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
