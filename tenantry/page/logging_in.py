"""Logging in, by a token, by a link, or by a provider of identities, and logging out.

Nothing of a login by a provider is kept on a server: what it is begun with is made of a secret in
the browser's cookie and of the key that all nodes have, so that any of them goes on with it.
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
from tenantry.http.oidc import (
    CodeRefusedError,
    LoginError,
    Logins,
    ProviderAwayError,
)
from tenantry.http.problems import RETRY_AFTER_SECONDS, Problem
from tenantry.http.tokens import (
    LEEWAY_SECONDS,
    BadTokenError,
    NoRightsError,
    TokenUnreadableError,
)
from tenantry.page import rendering, sessions
from tenantry.page.pages import LOGGED_OUT, Pages, Visit
from tenantry.page.viewing import NotLetIn, let_in, let_in_or_ask_again
from tenantry.unavailable import UnavailableError

LOGIN_SECONDS: Final = 600
"""How long somebody may take at the provider."""

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
    """Ask for a token, unless who looks is let in without one, or comes by a link."""
    if code := visit.given.get("code"):
        return rendering.html("link.html", visit.path, code=code)
    let_in_or_ask_again(visit.api, await visit.api.get("/whoami"))
    return visit.lead_to("ui")


@pages("POST /ui/login")
async def log_in(visit: Visit) -> Response:
    """Take a token, or a link's code for one, and have the browser keep it for this page."""
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
    """Have the browser forget the token."""
    to = "ui/login" if visit.api.logins is None else LOGGED_OUT
    cookie = sessions.end(secure=sessions.is_by_tls(visit.headers))
    return visit.lead_to(to, {"Set-Cookie": cookie})


@pages(f"GET /{LOGGED_OUT}")
async def show_logged_out(visit: Visit) -> Response:
    """Say to who has logged out whether the provider still knows them."""
    _logins(visit)
    raise NotLetIn("You are logged out")


@pages("GET /ui/oidc")
async def lead_to_provider(visit: Visit) -> Response:
    """Lead to the provider, with what this browser will be known by when it comes back."""
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
    """Begin the session of who comes back from the provider.

    The answer is a page that leads on by itself, no redirection: that would still be the
    provider's link to follow, with which browsers send no cookie that is `SameSite=Strict`.
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
    """Lead to where who is logged out here logs out at the provider, too."""
    with _told():
        there = await _logins(visit).way_out()
    if there is None:
        raise Problem(404, "the provider has no address where one logs out")
    return rendering.elsewhere(there)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One login of a browser: what goes to the provider and comes back, and what is held back.

    `state` is good for this browser alone; `verifier` never leaves the servers, and `nonce` only to
    the provider. Where it leads `to` is one of the page's own addresses.
    """

    to: str
    state: str
    nonce: str
    verifier: str

    @classmethod
    def begin(cls, cursors: Cursors, browser: str, to: str) -> Self:
        """Begin one."""
        unique = secrets.token_bytes(_UNIQUE)
        value = int(time.time()).to_bytes(_TIME) + unique + to.encode()
        return cls._of(cursors, browser, unique, to, cursors.seal(value, _STATE, browser))

    @classmethod
    def resume(cls, cursors: Cursors, browser: str | None, state: str) -> Self:
        """Give the one that a browser comes back with. Raises `Problem`, a 400."""
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
    """Give the way to one of the page's own addresses back, or that to the overview."""
    return to if len(to) <= _LONGEST_WAY and _WAY.fullmatch(to) else "ui"


_UNTOLD: Final[Mapping[str, str]] = {"Referrer-Policy": "no-referrer"}
"""What comes back with a code in its address names that address to nobody."""


@contextmanager
def _told() -> Iterator[None]:
    """Say to who tries to log in why that does not go on."""
    try:
        yield
    except ProviderAwayError as error:
        raise _not_logged_in(503, str(error)) from None
    except CodeRefusedError as error:
        raise _not_logged_in(400, f"{error}: begin again") from None
    except LoginError as error:
        raise _not_logged_in(502, str(error)) from None
    except NoRightsError as error:
        raise _not_logged_in(403, str(error)) from None
    except BadTokenError as error:
        raise _not_logged_in(502, str(error)) from None
    except TokenUnreadableError as error:
        raise _not_logged_in(503, str(error)) from None


def _declined(error: str) -> Problem:
    """Say what the provider says. In an address stands what anybody has written: only a code."""
    said = f" ({error})" if _ERROR.fullmatch(error) else ""
    return _not_logged_in(403, f"the provider has not logged you in{said}")


def _not_logged_in(status: int, detail: str) -> Problem:
    headers = dict(_UNTOLD)
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return Problem(status, detail, title="Not logged in", headers=headers)
