"""Who looks: their token in a cookie that only this page gets, and no other page's forms.

The cookie holds the token itself. So it is good for as long as the token is, on every node, and
nothing is kept on the server: logging out has the browser forget it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tenantry.http.problems import Problem

COOKIE: Final = "tenantry_session"
MOST_BYTES: Final = 4000
"""Browsers drop a cookie that is longer than some bytes more."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)


def token_of(headers: Headers) -> str | None:
    """Give the token of who looks; None where there is none, and where there are two."""
    found = {
        value.strip()
        for line in headers.getlist("cookie")
        for name, _, value in (one.partition("=") for one in line.split(";"))
        if name.strip() == COOKIE
    }
    token = found.pop() if len(found) == 1 else ""
    return token if _TOKEN.fullmatch(token) else None


def checked_token(text: str) -> str:
    """Give a token that somebody has pasted as a cookie can hold it; 422."""
    token = text.strip().removeprefix("Bearer ").strip()
    if len(token) > MOST_BYTES:
        raise Problem(422, f"the token is longer than {MOST_BYTES} bytes, which no cookie holds")
    if not _TOKEN.fullmatch(token):
        raise Problem(422, "this is no token: paste what `tenantry token` prints, and no more")
    return token


def begin(token: str, headers: Headers) -> str:
    """Give the `Set-Cookie` of a session; its path is where the form was, `/ui`."""
    secure = "; Secure" if _origin(headers).startswith("https://") else ""
    return f"{COOKIE}={token}; HttpOnly; SameSite=Strict{secure}"


def end(headers: Headers) -> str:
    """Give the `Set-Cookie` that ends it."""
    return f"{begin('', headers)}; Max-Age=0"


def refuse_foreign_forms(headers: Headers) -> None:
    """Let nobody but this page's own forms do anything; 403.

    A browser says where a form comes from: by `Sec-Fetch-Site`, which it keeps for TLS and this
    machine, or by `Origin`.
    """
    site = headers.get("sec-fetch-site")
    own = site == "same-origin" if site is not None else _is_own(headers)
    if not own:
        raise Problem(
            403,
            "this does not come from a form of this page. Open the page by the address under "
            "which the server is reached; a proxy has to pass on the header Host",
        )


def _is_own(headers: Headers) -> bool:
    try:
        netloc = urlsplit(_origin(headers)).netloc
    except ValueError:
        return False
    return bool(netloc) and netloc == headers.get("host")


def _origin(headers: Headers) -> str:
    return headers.get("origin", "")
