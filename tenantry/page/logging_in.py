"""Logging in, by a token, a link or an identity provider, and logging out.

A server keeps nothing of a login by a provider: its values are derived from a secret in the
browser's cookie and from the key that all nodes share, so that any node can complete it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from starlette.responses import Response

from tenantry.api.paging import BadCursorError, Cursors
from tenantry.http.oidc import CodeRefusedError, LoginError, Logins, ProviderAwayError
from tenantry.http.problems import RETRY_AFTER_SECONDS, Problem
from tenantry.http.tokens import LEEWAY_SECONDS, BadTokenError, NoRightsError, TokenUnreadableError
from tenantry.page import rendering, sessions
from tenantry.page.asking import NotLetIn, let_in, let_in_or_ask_again
from tenantry.page.pages import LOGGED_OUT, Pages, Visit
from tenantry.unavailable import UnavailableError

LOGIN_SECONDS: Final = 600
"""How long a login may take at the provider."""

_WAY: Final = re.compile(r"ui(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*", re.ASCII)
_LONGEST_WAY: Final = 300
_ERROR: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)
_STATE: Final = "a login by the provider"
_NONCE: Final = "the nonce of a login"
_VERIFIER: Final = "the verifier of a login"
_TIME: Final = 8
_UNIQUE: Final = 16

pages: Final = Pages()


@pages("GET /ui/login")
async def ask_for_token(visit: Visit) -> Response:
    """Ask for a token, or show the page of a login link; redirect if no token is needed."""
    if code := visit.given.get("code"):
        return rendering.html("link.html", visit.path, code=code)
    let_in_or_ask_again(visit.api, await visit.api.get("/whoami"))
    return visit.lead_to("ui")


@pages("POST /ui/login")
async def log_in(visit: Visit) -> Response:
    """Take a token, or a link's code, and store the token in the browser's session cookie."""
    if code := visit.given.get("code"):
        token = await _redeemed(visit, code)
    else:
        token = sessions.checked_token(visit.given.get("token", ""))
    let_in(await visit.api.with_token(token).get("/whoami"))
    cookie = sessions.begin(token, secure=sessions.is_by_tls(visit.headers))
    return visit.lead_to(_way(visit.given.get("to", "")), {"Set-Cookie": cookie})


async def _redeemed(visit: Visit, code: str) -> str:
    try:
        return await visit.api.redeem(code)
    except UnavailableError:
        raise Problem(503, "the database can't be reached now; try again") from None


@pages("POST /ui/logout")
async def log_out(visit: Visit) -> Response:
    """Delete the session cookie."""
    to = "ui/login" if visit.api.logins is None else LOGGED_OUT
    cookie = sessions.end(secure=sessions.is_by_tls(visit.headers))
    return visit.lead_to(to, {"Set-Cookie": cookie})


@pages(f"GET /{LOGGED_OUT}")
async def show_logged_out(visit: Visit) -> Response:
    """Tell a user who has logged out whether the session at the provider goes on."""
    _logins(visit)
    raise NotLetIn("You are logged out")


@pages("GET /ui/oidc")
async def lead_to_provider(visit: Visit) -> Response:
    """Redirect to the provider, with a cookie that identifies this browser on its return."""
    logins = _logins(visit)
    browser = sessions.browser_of(visit.headers) or secrets.token_urlsafe(32)
    attempt = Attempt.begin(visit.api.cursors, browser, _way(visit.given.get("to", "")))
    with _told():
        there = await logins.way_there(
            state=attempt.state, nonce=attempt.nonce, verifier=attempt.verifier
        )
    cookie = sessions.begin_login(browser, LOGIN_SECONDS, secure=_is_secure(logins))
    return rendering.elsewhere(there, {"Set-Cookie": cookie})


@pages("GET /ui/callback")
async def come_back(visit: Visit) -> Response:
    """Begin the session of a user who comes back from the provider.

    The answer is a page that refreshes itself, and no redirect: a redirect would still count as a
    navigation from the provider's site, for which browsers send no `SameSite=Strict` cookie.
    """
    logins, given = _logins(visit), visit.given
    with _told():
        attempt = Attempt.resume(
            visit.api.cursors, sessions.browser_of(visit.headers), given.get("state", "")
        )
        await logins.check_issuer(given.get("iss"))
        if "error" in given:
            raise _declined(given["error"])
        who = await logins.holder(
            given.get("code", ""), nonce=attempt.nonce, verifier=attempt.verifier
        )
        token = logins.session(who, datetime.now(UTC))
        known = await visit.api.with_token(token).get("/whoami")
        if not known.well:
            raise _not_logged_in(403 if known.status == 401 else known.status, known.problem)
    logins.tell_of(who)
    answer = rendering.html("logged_in.html", visit.path, 200, _UNTOLD, to=attempt.to)
    secure = _is_secure(logins)
    answer.headers.append("Set-Cookie", sessions.begin(token, secure=secure))
    answer.headers.append("Set-Cookie", sessions.begin_login("", 0, secure=secure))
    return answer


@pages("GET /ui/oidc-logout")
async def lead_out(visit: Visit) -> Response:
    """Redirect to the provider, to log out there as well."""
    with _told():
        there = await _logins(visit).way_out()
    if there is None:
        raise Problem(404, "the provider has no address where one logs out")
    return rendering.elsewhere(there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One login of a browser: the values sent to the provider, and those kept from it.

    `state` is good for this browser alone; `verifier` never leaves the servers, and `nonce` only to
    the provider. The login leads `to` one of the page's own addresses.
    """

    to: str
    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls, cursors: Cursors, browser: str, to: str) -> Self:
        """Begin a login."""
        unique = secrets.token_bytes(_UNIQUE)
        value = int(time.time()).to_bytes(_TIME) + unique + to.encode()
        return cls._of(cursors, browser, unique, to, cursors.seal(value, _STATE, browser))

    @classmethod
    def resume(cls, cursors: Cursors, browser: str | None, state: str) -> Self:
        """Return the login of a browser that comes back. Raises `Problem`, a 400."""
        try:
            value = cursors.open(state, _STATE, browser or "")
        except BadCursorError:
            value = b""
        age = time.time() - int.from_bytes(value[:_TIME])
        if not browser or not -LEEWAY_SECONDS <= age <= LOGIN_SECONDS:
            raise _not_logged_in(
                400,
                "this login was not begun in this browser, or longer than ten minutes ago: begin "
                "again",
            )
        unique, to = value[_TIME : _TIME + _UNIQUE], value[_TIME + _UNIQUE :].decode()
        return cls._of(cursors, browser, unique, to, state)

    @classmethod
    def _of(cls, cursors: Cursors, browser: str, unique: bytes, to: str, state: str) -> Self:
        nonce, verifier = (
            cursors.secret(what, browser, unique.hex()) for what in (_NONCE, _VERIFIER)
        )
        return cls(to=to, state=state, nonce=nonce, verifier=verifier)


def _logins(visit: Visit) -> Logins:
    logins = visit.api.logins
    if logins is None:
        raise Problem(404, "nobody logs in by a provider here: oidc.client_id is not set")
    return logins


def _is_secure(logins: Logins) -> bool:
    return logins.registration.public_url.startswith("https://")


def _way(to: str) -> str:
    """Return an address if it is one of the page's own, else the overview's."""
    return to if len(to) <= _LONGEST_WAY and _WAY.fullmatch(to) else "ui"


_UNTOLD: Final[Mapping[str, str]] = {"Referrer-Policy": "no-referrer"}
"""Headers of answers whose own address holds a code: it must not be sent on as a referrer."""


@contextmanager
def _told() -> Iterator[None]:
    """Show why a login failed."""
    try:
        yield
    except (ProviderAwayError, TokenUnreadableError) as error:
        raise _not_logged_in(503, str(error)) from None
    except CodeRefusedError as error:
        raise _not_logged_in(400, f"{error}: begin again") from None
    except (LoginError, BadTokenError) as error:
        raise _not_logged_in(502, str(error)) from None
    except NoRightsError as error:
        raise _not_logged_in(403, str(error)) from None


def _declined(error: str) -> Problem:
    """Show the provider's error code; its text is in the URL, where anyone could have put it."""
    said = f" ({error})" if _ERROR.fullmatch(error) else ""
    return _not_logged_in(403, f"the provider has not logged you in{said}")


def _not_logged_in(status: int, detail: str) -> Problem:
    headers = dict(_UNTOLD)
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Problem(status, detail, title="Not logged in", headers=headers)
