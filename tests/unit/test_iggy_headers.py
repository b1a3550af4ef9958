"""Iggy's headers: every type comes through, as JSON, into a dead letter and out again."""

from __future__ import annotations

import math
import uuid
from decimal import Decimal
from typing import Any

import apache_iggy as iggy
import pytest

from tenantry.broker.iggy.headers import as_json, pack, sendable, told, told_by, unpack, uuid_of
from tenantry.messages.headers import MOST_BYTES, UnfitHeaders

KEY, VALUE = iggy.HeaderKey, iggy.HeaderValue

EVERY_TYPE: dict[Any, Any] = {
    KEY.String("raw"): VALUE.Raw(bytes(range(255))),
    KEY.String("text"): VALUE.String("grün"),
    KEY.String("yes"): VALUE.Bool(True),
    KEY.String("i8"): VALUE.Int8(-128),
    KEY.String("i16"): VALUE.Int16(-32768),
    KEY.String("i32"): VALUE.Int32(-(2**31)),
    KEY.String("i64"): VALUE.Int64(-(2**63)),
    KEY.String("i128"): VALUE.Int128(-(2**127)),
    KEY.String("u8"): VALUE.UnsignedInt8(255),
    KEY.String("u16"): VALUE.UnsignedInt16(65535),
    KEY.String("u32"): VALUE.UnsignedInt32(2**32 - 1),
    KEY.String("u64"): VALUE.UnsignedInt64(2**64 - 1),
    KEY.String("u128"): VALUE.UnsignedInt128(2**128 - 1),
    KEY.String("f32"): VALUE.Float32(1.5),
    KEY.String("f64"): VALUE.Float64(math.pi),
    KEY.Raw(b"\xff\x00"): VALUE.String("a name in bytes"),
    KEY.UnsignedInt16(7): VALUE.String("a number for a name"),
}


def test_every_type_is_in_a_dead_letter_as_it_came() -> None:
    number, typed = unpack(pack(2**128 - 1, EVERY_TYPE))
    assert number == 2**128 - 1
    assert typed == EVERY_TYPE
    assert list(typed) == list(EVERY_TYPE)


def test_every_type_is_read_as_json_holds_it() -> None:
    table = as_json(EVERY_TYPE)
    assert table["text"] == "grün"
    assert table["yes"] is True
    assert table["i64"] == -(2**63)
    assert table["u128"] == Decimal(2**128 - 1)
    assert table["f64"] == math.pi
    assert table["raw"] == bytes(range(255))
    assert table["7"] == "a number for a name"
    assert len(table) == len(EVERY_TYPE)


def test_names_that_read_alike_stay_apart() -> None:
    typed = {KEY.String("1"): VALUE.Int8(1), KEY.Int8(1): VALUE.Int8(2)}
    assert as_json(typed) == {"1": 1, "1 (Int8)": 2}


@pytest.mark.parametrize(
    "headers",
    [
        {"short": "text", "n": 5, "f": 0.5, "yes": True},
        {"nested": {"a": [1, None, {"b": "c"}]}, "none": None, "empty": ""},
        {"long": "x" * 1000, "name" * 100: 1, "big": 2**63},
        {"message-id": "the sender's own", "content-type": 3},
    ],
)
def test_what_json_holds_comes_through(headers: dict[str, object]) -> None:
    read = told_by(sendable("an id", "text/plain", headers), "own", 1)
    assert (read.id, read.content_type) == ("an id", "text/plain")
    assert dict(read.headers or {}) == headers


def test_without_headers_there_are_none() -> None:
    assert sendable(None, None, {}) == {}
    read = told_by({}, "own", 17)
    assert (read.id, read.content_type, read.headers, read.published_at_ms) == (
        "own",
        None,
        None,
        17,
    )


def test_pieces_that_are_no_json_stay_headers() -> None:
    typed = {KEY.String("x-tenantry-json.0"): VALUE.String("{")}
    assert told_by(typed, "own", 1).headers == {"x-tenantry-json.0": "{"}


def test_more_than_the_limit_is_told_as_a_flaw() -> None:
    typed = {KEY.String(f"h{n}"): VALUE.Raw(b"x" * 255) for n in range(MOST_BYTES // 255 + 1)}
    assert isinstance(told_by(typed, "own", 1).headers, UnfitHeaders)


def test_a_message_whose_headers_fail_fails_alone() -> None:
    class Panicking:
        def user_headers(self) -> None:
            raise _panic()("the library fails")

    class Refusing:
        def user_headers(self) -> None:
            raise ValueError("no header")

    for message in (Panicking(), Refusing()):
        read = told(message, "own", 5)  # type: ignore[arg-type]
        assert read.id == "own"
        assert isinstance(read.headers, UnfitHeaders)


def _panic() -> type[BaseException]:
    return type("PanicException", (BaseException,), {})


def test_only_a_uuid_as_it_is_written_is_iggys_own_id() -> None:
    one = uuid.uuid4()
    assert uuid_of(str(one)) == one.int
    assert uuid_of(str(one).upper()) is None
    assert uuid_of("one") is None
    assert uuid_of(str(uuid.UUID(int=0))) is None
