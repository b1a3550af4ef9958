"""What a handler is, and what it is given: in a message's JSON every number is exactly as sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

import psycopg

from tenantry.messages import cloudevents


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

    @property
    def cloudevent(self) -> Mapping[str, object] | None:
        """The attributes of a message that is a CloudEvent, by their names; None for any other.

        `datacontenttype` is the content type of an event whose data is the message itself.
        """
        return cloudevents.told(self.headers, self.content_type)


Handler: TypeAlias = Callable[[Message, "psycopg.Cursor[Any]"], object]
"""`function(message, cursor)`; what it returns is dropped, what it raises is a failed attempt."""


_SURE: Final = 15
"""Significant digits that any float holds."""

_LONGEST_INT: Final = 4300
"""Digits up to which text becomes an int; that takes time in the square of their number, and
everybody's, as it does not let go of the interpreter."""


def parse(body: bytes) -> Any:
    """Read JSON. Raises `ValueError`, and `RecursionError` where it is nested too deeply.

    A whole number is an int, of more than 4300 digits a `Decimal`. Any other is a float where that
    is written with the same digits, else a `Decimal`.
    """
    return json.loads(body.decode(), parse_int=_whole, parse_float=_fraction)


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) <= _LONGEST_INT else _decimal(text)


def _fraction(text: str) -> float | Decimal:
    near = float(text)
    if len(text) <= _SURE + 1 and "e" not in text and "E" not in text:
        return near
    exact = _decimal(text)
    return near if math.isfinite(near) and Decimal(repr(near)) == exact else exact


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError("a number's exponent is beyond what a Decimal can hold") from None
