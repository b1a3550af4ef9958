"""The viewer's session: a token in a cookie, which no other site's pages or forms can send.

The cookie holds the token itself. So it is good for as long as the token is, on every node, and
the server keeps nothing: logging out only deletes the cookie in the browser.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from tenantry.http.auth import SESSION, cookie_of, is_token
from tenantry.http.problems import Problem

MOST_BYTES: Final = 4000
"""Longest token; browsers drop a cookie that is only a few bytes longer than this."""

LOGIN_COOKIE: Final = "tenantry_login"

_SECURE: Final = "; Secure"
_BROWSER: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


def browser_of(headers: Headers) -> str | None:
    """Return the secret of a browser that has begun a login by a provider; None without one."""
    browser = cookie_of(headers, LOGIN_COOKIE)
    return browser if browser is not None and _BROWSER.fullmatch(browser) else None


def checked_token(text: str) -> str:
    """Return a pasted token in a form that a cookie can hold. Raises `Problem`, a 422."""
    token = text.strip().removeprefix("Bearer ").strip()
    if len(token) > MOST_BYTES:
        raise Problem(422, f"the token is longer than {MOST_BYTES} bytes, which no cookie holds")
    if not is_token(token):
        raise Problem(422, "this is no token: paste what `tenantry token` prints, and no more")
    return token


def is_by_tls(headers: Headers) -> bool:
    """Tell whether the browser sent the form by HTTPS, be it to a proxy."""
    return _origin(headers).startswith("https://")


def begin(token: str, *, secure: bool) -> str:
    """Return the `Set-Cookie` of a session; its path defaults to the request's, `/ui`."""
    return f"{SESSION}={token}; HttpOnly; SameSite=Strict{_SECURE if secure else ''}"


def end(*, secure: bool) -> str:
    """Return the `Set-Cookie` that ends a session."""
    return f"{begin('', secure=secure)}; Max-Age=0"


def begin_login(browser: str, seconds: int, *, secure: bool) -> str:
    """Return the `Set-Cookie` that identifies a browser when it comes back from a provider.

    It comes back by a link of another site, with which browsers send no `Strict` cookie.
    """
    kept = f"HttpOnly; SameSite=Lax; Max-Age={seconds}{_SECURE if secure else ''}"
    return f"{LOGIN_COOKIE}={browser}; {kept}"


def refuse_foreign_forms(headers: Headers) -> None:
    """Refuse any form that is not this page's own. Raises `Problem`, a 403.

    A browser says where a form comes from by `Sec-Fetch-Site`, which it sends over TLS and to
    this machine only, or by `Origin`.
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
