"""Tenants' headers: parsed only where a failure concerns a single message."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any, Final

import orjson

MOST_BYTES: Final = 64 * 1024
"""Bytes of a message's headers: as JSON text, or as a table of AMQP."""

DEEPEST: Final = 32
"""The deepest nesting of objects and lists."""

CONTENT_ENCODING: Final = "content-encoding"
CORRELATION_ID: Final = "correlation-id"
"""The headers that hold two properties of AMQP without a column; a header that a sender gave that
name itself is left as it is."""

REPLAY_HEADER: Final = "x-tenantry-replay"
"""Marks a replayed message: the id of its dead letter."""

REPLAYS_HEADER: Final = "x-tenantry-replays"
"""Beside it: how often the dead letter has been replayed, this time included."""

OUT_OF_ORDER_HEADER: Final = "x-tenantry-out-of-order"
"""Beside them, if the message's partition is ordered: other messages have overtaken this one."""

_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

_LONGEST_INT: Final = 4300
"""The most digits of a whole number that Python turns into an `int`."""


class UnreadableHeadersError(ValueError):
    """Headers that the database holds and Python can't read."""


class UnfitHeaders(dict[str, object]):
    """The readable part of headers beyond a limit; `flaw` is the reason and the error."""

    def __init__(self, read: Mapping[str, object], flaw: tuple[str, str]) -> None:
        super().__init__(read)
        self.flaw = flaw


class JsonHeaders(Mapping[str, object]):
    """Headers as the JSON text from the database; parsed when a header is first asked for.

    Parsing raises `UnreadableHeadersError`; the text itself is always good for `jsonb` again. A
    number that neither `int` nor `float` can hold is a `Decimal`.
    """

    __slots__ = ("_read", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._read: Mapping[str, object] | None = None

    def __getitem__(self, name: str) -> object:
        return self._table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())

    def __bool__(self) -> bool:
        return self.text not in ("{}", "null")

    def __contains__(self, name: object) -> bool:
        # Names are seldom there, and are looked for in every message: search the text first.
        return isinstance(name, str) and _quoted(name) in self.text and name in self._table()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header, or the default."""
        return self._table()[name] if name in self else default

    def with_others(self, others: Mapping[str, object]) -> JsonHeaders:
        """Return these headers with `others`, which win; these stay exact to the last digit."""
        added = orjson.dumps(others).decode()
        if not self or not self.text.startswith("{"):
            return JsonHeaders(added)
        # Of two members of the same name `jsonb` keeps the last.
        return JsonHeaders(f"{self.text[:-1]},{added[1:]}" if others else self.text)

    def _table(self) -> Mapping[str, object]:
        if self._read is None:
            try:
                read = json.loads(self.text, parse_int=_whole, parse_float=_fraction)
            except (ValueError, RecursionError) as error:
                raise UnreadableHeadersError(f"the headers can't be read: {error}") from error
            if not isinstance(read, dict):
                raise UnreadableHeadersError("the headers are no JSON object")
            self._read = read
        return self._read


def depth(text: str) -> int:
    """Return how deep well-formed JSON is nested: 1 for a flat object."""
    deepest = level = 0
    for part in _STRING_OR_BRACKET.findall(text):
        if part in ("{", "["):
            level += 1
            deepest = max(deepest, level)
        elif part in ("}", "]"):
            level -= 1
    return deepest


def _whole(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _LONGEST_INT else Decimal(digits)


def _fraction(digits: str) -> float | Decimal:
    value = float(digits)
    return value if isfinite(value) else Decimal(digits)


def _quoted(name: str) -> str:
    return f'"{name}"'
