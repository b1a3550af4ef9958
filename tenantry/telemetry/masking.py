"""Keeps secrets out of the log, in whatever shape they are logged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from structlog.typing import EventDict, WrappedLogger

MASK: Final = "***"

_SECRET_KEY: Final = re.compile(
    r"passw(or)?d|secret|token|authori[sz]ation|credential|cookie|api_?key", re.IGNORECASE
)
# Greedy up to the last @: a password that holds an unescaped @ or / is masked as a whole, even if
# that swallows the host too.
_USERINFO: Final = re.compile(r"\b((?:amqps?|postgres(?:ql)?)://)\S*@", re.IGNORECASE)
_HTTP_USERINFO: Final = re.compile(r"\b(https?://)[^\s/@]+@", re.IGNORECASE)
_ASSIGNED: Final = re.compile(r"\b(password\s*=\s*)('[^']*'|\S+)", re.IGNORECASE)
_BEARER: Final = re.compile(r"\b(bearer\s+)[^\s\"',]+", re.IGNORECASE)

_DEPTH: Final = 6


def mask_text(text: str) -> str:
    """Mask the user part of URLs, `password=` settings and bearer tokens in a text."""
    if "://" in text:
        text = _USERINFO.sub(rf"\1{MASK}@", text)
        text = _HTTP_USERINFO.sub(rf"\1{MASK}@", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _BEARER.sub(rf"\1{MASK}", text)


def mask(value: object, depth: int = 0) -> object:
    """Give the value as plain data with its secrets masked; unknown objects by their repr."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no NaN
    if isinstance(value, str):
        return mask_text(value)
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            return {
                str(key): MASK if _is_secret(str(key), one) else mask(one, depth + 1)
                for key, one in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [mask(one, depth + 1) for one in value]
    return mask_text(repr(value))


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask an event's secrets: by the names of its keys, and within its texts."""
    return {key: MASK if _is_secret(key, value) else mask(value) for key, value in event.items()}


def _is_secret(key: str, value: object) -> bool:
    # A number under such a key counts or measures something (tokens issued, say).
    return not isinstance(value, (int, float)) and _SECRET_KEY.search(key) is not None
