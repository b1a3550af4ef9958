"""Odd and malformed messages, generated from a seed."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from tests.ledger import KEY_HEADER, Draft, Fate
from tests.ledger.sql_client import MANY_DIGITS

JSON_TYPES = (
    None, "application/json", "application/json; charset=utf-8", "APPLICATION/JSON",
    "application/json;charset=utf-16",
)  # fmt: skip
OTHER_TYPES = (
    "", "text/plain", "application/octet-stream", "application/jsonp", "json", "a" * 255,
    "täxt/ä", "text/\x00plain", "';DROP TABLE messages--",
)  # fmt: skip
NO_UTF8 = (b"\xff\xfe\x00", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80")
STRANGE_TEXTS = (
    "", "\x00", "\u202e", "ä" * 100, "😀", "\n\r\t", "NULL", "\\", "'", '"', "{}", "\ufeff", "%s",
    "${x}", "../../etc", "0", "-1", "\x7f", "\u2028",
)  # fmt: skip
LARGEST = 2_000_000

Content: TypeAlias = tuple[bytes, str | None, Fate]
"""A body, its content type, and its expected fate."""


class Fuzz:
    """Makes messages; the same seed makes the same messages."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def in_sql(self, tenant_id: str, number: int) -> Draft:
        """Make a message as SQL takes it: of texts and JSON, with numbers of any length."""
        draft = self(tenant_id, number)
        dice = random.Random(f"{self._seed}/{tenant_id[:2]}/{number}/sql")
        headers = _as_json(draft.headers)
        if not dice.randrange(12):
            headers[f"n{number}"] = dice.choice(HEADERS_OF_DIGITS)
        content_type = _as_json(draft.content_type)
        plain = content_type == draft.content_type and headers.keys() == {KEY_HEADER}
        return replace(
            draft,
            message_id=_as_json(draft.message_id),
            content_type=content_type,
            headers=headers,
            fate=draft.fate if plain else "either",
        )

    def __call__(self, tenant_id: str, number: int) -> Draft:
        """Make a tenant's message of this number."""
        dice = random.Random(f"{self._seed}/{tenant_id[:2]}/{number}")
        key = str(uuid.UUID(int=dice.getrandbits(128)))
        body, content_type, fate = dice.choice(KINDS)(dice)
        message_id: Any = key
        headers: dict[str, Any] = {KEY_HEADER: key}
        wire_type: Any = content_type
        match dice.randrange(12):
            case 0:
                message_id = dice.choice((None, f"{key}{dice.choice(STRANGE_TEXTS)}"))
            case 1:
                headers |= _headers(dice)
            case 2:
                message_id = key.encode() + dice.choice(NO_UTF8)
            case 3:
                wire_type = dice.choice(NO_UTF8)
        plain = message_id in (key, None) and wire_type == content_type and len(headers) == 1
        return Draft(
            key=key,
            message_id=message_id,
            body=body,
            content_type=wire_type,
            headers=headers,
            fate=fate if plain and "\x00" not in (content_type or "") else "either",
        )


HEADERS_OF_DIGITS: tuple[Any, ...] = (
    10**400, -(10**400), [10**400] * 3, {"deep": {"er": 10**400}}, MANY_DIGITS, [MANY_DIGITS],
    {"deep": MANY_DIGITS},
)  # fmt: skip


def _as_json(value: Any) -> Any:
    """Return the nearest value that JSON without NUL can hold."""
    match value:
        case bytes():
            return _as_json(value.decode(errors="replace"))
        case str():
            return value.replace("\0", "\ufffd")
        case datetime() | Decimal():
            return str(value)
        case dict():
            return {_as_json(name): _as_json(one) for name, one in value.items()}
        case list():
            return [_as_json(one) for one in value]
        case _:
            return value


def _document(dice: random.Random) -> Content:
    return _json(_value(dice, 4)), dice.choice(JSON_TYPES), "stored"


def _truncated(dice: random.Random) -> Content:
    body = _json(_value(dice, 4))
    return body[: dice.randrange(len(body) + 1)], dice.choice(JSON_TYPES), "either"


def _flipped(dice: random.Random) -> Content:
    body = bytearray(_json(_value(dice, 4)))
    for _ in range(dice.randint(1, 3)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return bytes(body), dice.choice(JSON_TYPES), "either"


def _noise(dice: random.Random) -> Content:
    return dice.randbytes(dice.randrange(600)), dice.choice(JSON_TYPES), "either"


def _bytes(dice: random.Random) -> Content:
    return dice.randbytes(dice.randrange(600)), dice.choice(OTHER_TYPES), "stored"


def _nul(dice: random.Random) -> Content:
    body = _json({"text": "a\x00b", "more": _value(dice, 2)})
    return body, dice.choice(JSON_TYPES), "dead_lettered"


def _surrogates(dice: random.Random) -> Content:
    half = dice.choice(("\\ud800", "\\udc00", "\\udfff\\ud800", "\\ud83d\\ud83d"))
    return f'{{"a": "{half}"}}'.encode(), dice.choice(JSON_TYPES), "dead_lettered"


def _deep(dice: random.Random) -> Content:
    depth = dice.choice((50, 500, 1_000, 1_025, 5_000, 20_000))
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    return (
        (opening * depth + "1" + closing * depth).encode(),
        dice.choice(JSON_TYPES),
        "stored" if depth == 50 else "either",
    )


def _numbers(dice: random.Random) -> Content:
    number = dice.choice(
        ("1" * 5_000, "1e400", "-0", "-0.0", "1E-400", "0.1e1", "1e131071", "1e131072", "1e999999",
         "1.000000000000000000000000000000000000001", "9" * 140_000, "01", "+1", ".5", "5.", "0x10")
    )  # fmt: skip
    return f"[{number}]".encode(), dice.choice(JSON_TYPES), "either"


def _no_json(dice: random.Random) -> Content:
    body = dice.choice(
        (b"", b" ", b"NaN", b"Infinity", b"nul", b"{'a': 1}", b"[1,]", b"{} {}", b"\xef\xbb\xbf{}",
         b"\xff\xfe{\x00}\x00", b"undefined", b'"\t"', b'"\xc3\x28"', b"\x00", b'{"a"}', b"// {}")
    )  # fmt: skip
    return body, dice.choice(JSON_TYPES), "dead_lettered"


def _twice(dice: random.Random) -> Content:
    pairs = ",".join(f'"k{dice.randrange(3)}":{dice.randrange(9)}' for _ in range(8))
    return f"{{{pairs}}}".encode(), dice.choice(JSON_TYPES), "stored"


def _large(dice: random.Random) -> Content:
    # One in a hundred of its kind, or large messages would take all the time.
    if dice.randrange(100):
        return _document(dice)
    size = dice.randrange(100_000, LARGEST)
    return _json({"large": "x" * size}), "application/json", "stored"


KINDS: tuple[Callable[[random.Random], Content], ...] = (
    _document, _truncated, _flipped, _noise, _bytes, _nul, _surrogates, _deep, _numbers, _no_json,
    _twice, _large,
)  # fmt: skip


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _value(dice: random.Random, depth: int) -> object:
    match dice.randrange(9 if depth else 6):
        case 0:
            return dice.choice((None, True, False))
        case 1:
            return dice.randrange(-(10**30), 10**30)
        case 2:
            return dice.uniform(-1, 1) * 10.0 ** dice.randint(-300, 300)
        case 3 | 4:
            return dice.choice(STRANGE_TEXTS).replace("\x00", "0") * dice.randrange(4)
        case 5:
            return dice.randrange(100)
        case 6:
            return [_value(dice, depth - 1) for _ in range(dice.randrange(5))]
        case _:
            names = (dice.choice(STRANGE_TEXTS).replace("\x00", "0") for _ in range(4))
            return {name: _value(dice, depth - 1) for name in names}


def _headers(dice: random.Random) -> dict[str, Any]:
    strange: tuple[Any, ...] = (
        None, True, -1, 2**62, Decimal("1.5"), b"\x00\xff", datetime(2026, 1, 1, tzinfo=UTC),
        ["a", [None, {"b": "\x00"}]], {"deep": {"er": {"est": b"\xff"}}}, "x" * 5_000,
        *STRANGE_TEXTS,
    )  # fmt: skip
    names = [*STRANGE_TEXTS, "x-death", "x-delivery-count", "timestamp_in_ms", "CC", "content-type"]
    return {name: _header(dice, name, strange) for name in (dice.choice(names) for _ in range(4))}


def _header(dice: random.Random, name: str, strange: tuple[Any, ...]) -> Any:
    """Return any value for a header, except two that concern only the client and its broker.

    CC routes. An `x-death` that is a list, but not of tables, makes RabbitMQ 3.10's dead-lettering
    process of that queue crash for ever: nothing is lost, but nothing comes out either.
    """
    if name == "CC":
        return []
    value = dice.choice(strange)
    return None if name == "x-death" and isinstance(value, list) else value
