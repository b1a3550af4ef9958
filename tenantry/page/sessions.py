"""Who looks: their token in a cookie that only this page gets, and no other page's forms.

The cookie holds the token itself. So it is good for as long as the token is, on every node, and
nothing is kept on the server: logging out has the browser forget it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tenantry.http.cookies import SESSION, cookie_of, is_token
from tenantry.http.problems import Problem

MOST_BYTES: Final = 4000
"""Browsers drop a cookie that is longer than some bytes more."""

LOGIN_COOKIE: Final = "tenantry_login"

_SECURE: Final = "; Secure"
_BROWSER: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def browser_of(headers: Headers) -> str | None:
    """Give what only the browser knows that has begun to log in by a provider, if it has."""
    browser = cookie_of(headers, LOGIN_COOKIE)
    return browser if browser is not None and _BROWSER.fullmatch(browser) else None


def checked_token(text: str) -> str:
    """Give a token that somebody has pasted as a cookie can hold it; 422."""
    token = text.strip().removeprefix("Bearer ").strip()
    if len(token) > MOST_BYTES:
        raise Problem(422, f"the token is longer than {MOST_BYTES} bytes, which no cookie holds")
    if not is_token(token):
        raise Problem(422, "this is no token: paste what `tenantry token` prints, and no more")
    return token


def is_by_tls(headers: Headers) -> bool:
    """Tell whether a form of the page's was sent by HTTPS, to a proxy perhaps."""
    return _origin(headers).startswith("https://")


def begin(token: str, *, secure: bool) -> str:
    """Give the `Set-Cookie` of a session; its path is where the request was, `/ui`."""
    return f"{SESSION}={token}; HttpOnly; SameSite=Strict{_SECURE if secure else ''}"


def end(*, secure: bool) -> str:
    """Give the `Set-Cookie` that ends it."""
    return f"{begin('', secure=secure)}; Max-Age=0"


def begin_login(browser: str, seconds: int, *, secure: bool) -> str:
    """Give the `Set-Cookie` by which a browser is known that comes back from a provider.

    It comes back by a link of another site, with which browsers send nothing that is `Strict`.
    """
    kept = f"HttpOnly; SameSite=Lax; Max-Age={seconds}{_SECURE if secure else ''}"
    return f"{LOGIN_COOKIE}={browser}; {kept}"


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
