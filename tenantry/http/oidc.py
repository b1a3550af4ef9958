"""Login by an identity provider (OpenID Connect): the authorization code flow with PKCE.

The provider's endpoints are in its discovery document, which each process fetches for a login and
caches. No state of a single login is kept here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final, Self
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
import structlog

from tenantry.http.fetching import FetchError, fetch, trusting
from tenantry.http.identity import Identity
from tenantry.http.tokens import BadTokenError, Principal, Scope
from tenantry.settings import Settings

log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger("identity")

WELL_KNOWN: Final = "/.well-known/openid-configuration"
MOST_AT_ONCE: Final = 16
"""Codes exchanged at once, of all clients: any client may begin a login, or make a code up."""

_LONGEST_URL: Final = 2048
_LONGEST_CODE: Final = 4096
_CLIENT_IS_WRONG: Final = frozenset({"invalid_client", "unauthorized_client"})


class LoginError(Exception):
    """The login failed; the message tells its user why, and holds nothing secret."""


class ProviderAwayError(LoginError):
    """The provider does not answer, or too many logins run at once: it may succeed later."""


class ProviderWrongError(LoginError):
    """The provider's answer is invalid, or it does not know this service."""


class CodeRefusedError(LoginError):
    """The provider refuses the code: it was used, is too old, or was made up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The registration of this service as a client of the provider.

    `public_url` is where browsers reach the server, with a proxy's prefix if there is one;
    `session` is the longest time that a login lasts.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    public_url: str
    scopes: str = "openid"
    session: timedelta = timedelta(hours=8)
    ca_file: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Read it from the settings; None if this login is not configured."""
        given = settings.oidc
        if not given.client_id:
            return None
        return cls(
            issuer=settings.security.issuer,
            client_id=given.client_id,
            client_secret=given.client_secret.get_secret_value(),
            public_url=settings.server.public_url,
            scopes=given.scopes,
            session=timedelta(seconds=given.session_seconds),
            ca_file=settings.security.jwks_ca_file,
        )

    @property
    def redirect_uri(self) -> str:
        """The URL to which the provider sends the browser back."""
        return f"{self.public_url}/ui/callback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """A provider's endpoints. `by_header`: clients authenticate by a header, not in the form."""

    authorization: str
    token: str
    end_session: str | None
    by_header: bool
    names_issuer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times in seconds, of requests to the provider and of its cached discovery document.

    The document is fetched again once it is older than `fresh`; while the provider is away it stays
    in use until it is as old as `kept`. After a failure there is no request for `again`.
    """

    look: float = 5.0
    fresh: float = 300.0
    kept: float = 3600.0
    again: float = 5.0


@dataclass(frozen=True, slots=True)
class _Known:
    endpoints: Endpoints
    at: float


class Logins:
    """Sends users to the provider, and checks what they come back with. For one event loop."""

    def __init__(
        self, registration: Registration, identity: Identity, pace: Pace | None = None
    ) -> None:
        """`identity` verifies the provider's tokens."""
        self.registration: Final = registration
        self._identity = identity
        self._pace = pace or Pace()
        self._tls = trusting(registration.ca_file)
        self._turn = asyncio.Lock()
        self._known: _Known | None = None
        self._failed: tuple[float, LoginError] | None = None
        self._exchanges = 0
        self._told: dict[str, float] = {}

    @property
    def provider(self) -> str:
        """The provider's name, for people."""
        return urlsplit(self.registration.issuer).hostname or self.registration.issuer

    async def way_there(self, *, state: str, nonce: str, verifier: str) -> str:
        """Give the provider's URL for this login. Raises `LoginError`."""
        asked = {
            "response_type": "code",
            "client_id": self.registration.client_id,
            "redirect_uri": self.registration.redirect_uri,
            "scope": self.registration.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": _challenge(verifier),
            "code_challenge_method": "S256",
        }
        return _with_query((await self._endpoints()).authorization, asked)

    async def way_out(self) -> str | None:
        """Give the provider's URL for logging out, if it has one.

        Raises `LoginError`. The URL names no user: a token has no place in it.
        """
        there = (await self._endpoints()).end_session
        if there is None:
            return None
        asked = {
            "client_id": self.registration.client_id,
            "post_logout_redirect_uri": f"{self.registration.public_url}/ui/login",
        }
        return _with_query(there, asked)

    async def check_issuer(self, said: str | None) -> None:
        """Check that the answer is this provider's (RFC 9207). Raises `LoginError`."""
        if said is None and not (await self._endpoints()).names_issuer:
            return
        if said != self.registration.issuer:
            raise ProviderWrongError("the answer is of another provider than security.issuer")

    async def holder(self, code: str, *, nonce: str, verifier: str) -> Principal:
        """Exchange the code that a user has come back with; give who has logged in.

        Raises `LoginError`, and what `ProviderTokens.read_id_token` does.
        """
        if not 0 < len(code) <= _LONGEST_CODE:
            raise CodeRefusedError("this is no code of the provider's")
        if self._exchanges >= MOST_AT_ONCE:
            raise ProviderAwayError("too many log in at once; try again")
        self._exchanges += 1
        try:
            token = await self._exchange(code, verifier)
        finally:
            self._exchanges -= 1
        tokens = self._identity.provider_tokens
        assert tokens is not None  # noqa: S101 - the settings see to it
        try:
            return await tokens.read_id_token(
                token, client_id=self.registration.client_id, nonce=nonce
            )
        except BadTokenError as error:
            self._tell("identity.login_refused", error=str(error))
            raise ProviderWrongError(f"what the provider has signed is not good: {error}") from None

    def session(self, who: Principal, now: datetime) -> str:
        """Sign a session's token for a user; it ends with their ID token, or before."""
        tokens = self._identity.tokens
        if tokens is None:
            raise ProviderWrongError("there is no security.jwt_secret to sign a session with")
        end, began = now + self.registration.session, now
        if who.expires_at is not None:
            end = min(end, datetime.fromtimestamp(who.expires_at, UTC))
        # Of a tenant's user: by it a token of a former tenant of the id is told.
        if who.issued_at is not None:
            began = min(began, datetime.fromtimestamp(who.issued_at, UTC))
        return tokens.issue(
            subject=who.name,
            now=began,
            ttl=end - began,
            tenant_id=who.tenant_id,
            scope=who.scope,
            payloads=who.payloads and who.scope in {Scope.READ, Scope.OPERATE},
        )

    def tell_of(self, who: Principal) -> None:
        """Log who has logged in."""
        log.info(
            "identity.logged_in",
            name=who.name,
            scope=who.scope.value,
            tenant_id=who.tenant_id,
            provider=self.provider,
        )

    async def _exchange(self, code: str, verifier: str) -> str:
        endpoints, who = await self._endpoints(), self.registration
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": who.redirect_uri,
            "code_verifier": verifier,
        }
        auth = None
        if who.client_secret and endpoints.by_header:
            auth = quote_plus(who.client_id), quote_plus(who.client_secret)
        else:
            form["client_id"] = who.client_id
            if who.client_secret:
                form["client_secret"] = who.client_secret
        try:
            answer = await fetch(
                endpoints.token, tls=self._tls, seconds=self._pace.look, form=form, auth=auth
            )
        except FetchError as error:
            raise self._away("exchanges no code now", str(error)) from None
        told = _object(answer.body)
        if answer.status == 200:
            token = told.get("id_token")
            if not isinstance(token, str) or not token:
                raise ProviderWrongError(
                    "the provider has answered without an ID token: openid has to be among "
                    "oidc.scopes"
                )
            return token
        said = told.get("error")
        return self._refused(answer.status, said if isinstance(said, str) else "")

    def _refused(self, status: int, error: str) -> str:
        """Raise the `LoginError` for a code that was not exchanged."""
        if error == "invalid_grant":
            raise CodeRefusedError(
                "the provider does not take the code: it was used, or is too old"
            )
        if error in _CLIENT_IS_WRONG or status == 401:
            self._tell(
                "identity.client_refused",
                error=error if error in _CLIENT_IS_WRONG else f"status {status}",
                remedy="see that oidc.client_id and oidc.client_secret are as it has them",
            )
            raise ProviderWrongError("the provider does not know this service by what it is set to")
        if status >= 500:
            raise self._away("exchanges no code now", f"it answers with status {status}")
        raise ProviderWrongError(f"the provider exchanges no code: it answers with status {status}")

    async def _endpoints(self) -> Endpoints:
        """Give the provider's endpoints, from the cache if fresh. Raises `LoginError`."""
        if (known := self._fresh()) is not None:
            return known.endpoints
        async with self._turn:
            if (known := self._fresh()) is not None:
                return known.endpoints
            if (failure := self._has_just_failed()) is None:
                try:
                    endpoints = await self._look()
                except LoginError as error:
                    self._failed = monotonic(), error
                    failure = error
                else:
                    self._known, self._failed = _Known(endpoints, monotonic()), None
                    return endpoints
        known = self._known
        if known is None or monotonic() - known.at > self._pace.kept:
            raise type(failure)(str(failure))
        return known.endpoints

    def _fresh(self) -> _Known | None:
        known = self._known
        return None if known is None or monotonic() - known.at > self._pace.fresh else known

    def _has_just_failed(self) -> LoginError | None:
        if self._failed is None or monotonic() - self._failed[0] > self._pace.again:
            return None
        return self._failed[1]

    async def _look(self) -> Endpoints:
        issuer = self.registration.issuer
        try:
            answer = await fetch(
                issuer.rstrip("/") + WELL_KNOWN, tls=self._tls, seconds=self._pace.look
            )
        except FetchError as error:
            raise self._away("does not tell where to log in", str(error)) from None
        if answer.status != 200:
            reason = f"it answers with status {answer.status}"
            raise self._away("does not tell where to log in", reason)
        try:
            return read_endpoints(
                answer.body, issuer, has_secret=bool(self.registration.client_secret)
            )
        except ValueError as error:
            self._tell(
                "identity.provider_not_understood",
                error=str(error),
                remedy=f"see what security.issuer answers under {WELL_KNOWN}",
            )
            raise ProviderWrongError(f"what the provider tells is not good: {error}") from None

    def _away(self, what: str, reason: str) -> ProviderAwayError:
        self._tell("identity.provider_away", error=reason, remedy="log in with a token meanwhile")
        return ProviderAwayError(f"the provider {self.provider} {what}; try again")

    def _tell(self, event: str, **said: object) -> None:
        """Log a failure at a limited rate: any client can cause it, as often as it likes."""
        now = monotonic()
        if now - self._told.get(event, -self._pace.again) >= self._pace.again:
            self._told[event] = now
            log.warning(event, provider=self.provider, **said)


def read_endpoints(document: bytes, issuer: str, *, has_secret: bool) -> Endpoints:
    """Read a discovery document (OpenID Connect Discovery).

    Raises `ValueError` if it is another issuer's, or can't be used.
    """
    told = _object(document)
    if told.get("issuer") != issuer:
        raise ValueError("it is of another issuer than security.issuer")
    ways = told.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    by_header = isinstance(ways, list) and "client_secret_basic" in ways
    if (
        has_secret
        and not by_header
        and not (isinstance(ways, list) and "client_secret_post" in ways)
    ):
        raise ValueError(
            "it takes no client secret as it is (token_endpoint_auth_methods_supported)"
        )
    end = told.get("end_session_endpoint")
    return Endpoints(
        authorization=_endpoint(told, "authorization_endpoint"),
        token=_endpoint(told, "token_endpoint"),
        end_session=None if end is None else _endpoint(told, "end_session_endpoint"),
        by_header=by_header,
        names_issuer=told.get("authorization_response_iss_parameter_supported") is True,
    )


def _object(document: bytes) -> Mapping[str, Any]:
    """Read a JSON object; anything else counts as an empty one."""
    try:
        told = orjson.loads(document)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _endpoint(told: Mapping[str, Any], name: str) -> str:
    """Check an endpoint's URL: https, or http on this machine."""
    url = told.get(name)
    if not isinstance(url, str) or not 0 < len(url) <= _LONGEST_URL:
        raise ValueError(f"it has no {name}")
    plain = url.isascii() and url.isprintable() and not {*url} & {" ", "#", "\\", '"', "<", ">"}
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        good = plain and bool(host) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        good, host = False, ""
    if not good or not (url.startswith("https://") or _is_here(url, host)):
        raise ValueError(f"its {name} is no address by https")
    return url


def _is_here(url: str, host: str) -> bool:
    if not url.startswith("http://"):
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _with_query(url: str, values: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"
