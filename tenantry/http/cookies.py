"""Cookies of requests, among them the session cookie of the operator's page."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import Headers

SESSION: Final = "tenantry_session"

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)


def is_token(text: str) -> bool:
    """Tell whether a text may be a token, as a cookie and a header can hold it."""
    return _TOKEN.fullmatch(text) is not None


def session_of(headers: Headers) -> str | None:
    """Give a session's token; None without one, and where there are two."""
    token = cookie_of(headers, SESSION)
    return token if token is not None and is_token(token) else None


def cookie_of(headers: Headers, wanted: str) -> str | None:
    """Give a cookie's value; None without one, and where there are two."""
    found = {
        value.strip()
        for line in headers.getlist("cookie")
        for name, _, value in (one.partition("=") for one in line.split(";"))
        if name.strip() == wanted
    }
    return found.pop() if len(found) == 1 else None
