"""The numbers of a message, as a handler gets them."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.handlers.message import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("18446744073709551617", 2**64 + 1),
        ("9" * 4300, 10**4300 - 1),
        ("1" + "0" * 5000, Decimal(10) ** 5000),
        ("0.1", 0.1),
        ("1e20", 1e20),
        ("12.50", 12.5),
        ("0.1000000000000000000001", Decimal("0.1000000000000000000001")),
        ("1e400", Decimal("1e400")),
        ("1e-400", Decimal("1e-400")),
        ("123456789012345678.5", Decimal("123456789012345678.5")),
    ],
)
def test_a_number_arrives_exactly_and_in_the_plainest_kind_that_holds_it(
    text: str, value: object
) -> None:
    (found,) = parse(f"[{text}]".encode())
    assert found == value
    assert type(found) is type(value)


def test_minus_zero_keeps_its_sign() -> None:
    assert math.copysign(1, parse(b"-0.0")) == -1


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
)
def test_no_number_is_rounded(text: str) -> None:
    found = parse(text.encode())
    shown = repr(found) if isinstance(found, float) else found
    assert Decimal(shown) == Decimal(text)


@pytest.mark.parametrize("text", [b"1e9999999999999999999", b"[1.5e99999999999999999999]"])
def test_an_exponent_that_nothing_holds_is_the_messages_failure(text: bytes) -> None:
    with pytest.raises(ValueError, match="exponent"):
        parse(text)


def test_digits_are_read_in_no_more_time_than_they_take_to_send() -> None:
    """Quadratic work on these, under the interpreter's lock, would hold up every tenant."""
    (found,) = parse(b"[" + b"7" * 2_000_000 + b"]")
    assert isinstance(found, Decimal)
