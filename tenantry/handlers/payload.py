"""A message's JSON as a handler gets it: every number is exactly what was sent."""

from __future__ import annotations

import json
import math
from decimal import Decimal, InvalidOperation
from typing import Any, Final

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
