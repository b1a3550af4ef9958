"""Where a request comes from, who makes it, and whether they may: decided before it is read."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.http.problems import Problem
from tenantry.http.tokens import BadTokenError, Principal, Tokens
from tenantry.http.tokens import Scope as TokenScope

_CONNECTION_KEY: Final = "tenantry.connection"

RELAYED_PEER: Final = b"tenantry-peer"
"""The header in which the front names a request's peer, on the socket that is the front's alone."""


class Listener(StrEnum):
    """Which listener a request came in by."""

    CONTROL = "control"
    TCP = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A request's listener and peer.

    `peer` names the peer's credentials on the control socket and its address on TCP. `closing`
    is set once the server is about to stop, so that requests that wait are answered.
    """

    listener: Listener
    peer: str
    closing: asyncio.Event | None = None


# What no listener has marked is treated as the least trusted.
_UNKNOWN: Final = Connection(listener=Listener.TCP, peer="unknown")


def mark(scope: MutableMapping[str, Any], connection: Connection) -> None:
    """Note on a request's scope how it came in. Only listeners do this."""
    scope[_CONNECTION_KEY] = connection


def connection_of(scope: MutableMapping[str, Any]) -> Connection:
    """Tell how a request came in."""
    found = scope.get(_CONNECTION_KEY)
    return found if isinstance(found, Connection) else _UNKNOWN


_PRINCIPAL_KEY: Final = "tenantry.principal"


class Access(StrEnum):
    """Who may call a route on TCP once tokens are in use."""

    PUBLIC = "public"
    """Anyone, without a token."""
    TENANT = "tenant"
    """An admin, or the tenant the request is about."""
    ADMIN = "admin"
    """An admin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the table says about a request; `tenant_id` as the path names it, if it does."""

    access: Access
    tenant_id: str | None


def principal_of(scope: Scope) -> Principal:
    """Tell who makes a request that has been let through."""
    principal = scope[_PRINCIPAL_KEY]
    assert isinstance(principal, Principal)  # noqa: S101 - set by the middleware below, always
    return principal


def client_of(scope: Scope) -> str:
    """Name the client that limits are counted for: a token's tenant, its holder, or an address.

    A tenant is one client, under however many names its tokens are issued: else as many names would
    take what there is for all. A client on the control socket is named by its credentials.
    """
    principal, connection = principal_of(scope), connection_of(scope)
    if connection.listener is Listener.TCP and not principal.anonymous:
        return f"{principal.tenant_id}/" if principal.tenant_id else f"/{principal.name}"
    return connection.peer


class Authentication:
    """Lets a request through, or answers 401 or 403.

    On the control socket the file's mode has already decided, and the peer's credentials name
    the caller. On TCP, with tokens, the table of access decides; whatever it does not name is
    for admins. On TCP without tokens everybody on this machine is let in, but no web page that
    a browser on this machine has open.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Tokens | None, rule_for: Callable[[str, str], Rule | None]
    ) -> None:
        """Take the application, who reads tokens, and what tells a method's and path's rule."""
        self._app = app
        self._rule_for = rule_for
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            try:
                scope[_PRINCIPAL_KEY] = self._admit(scope)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Principal:
        connection = connection_of(scope)
        if connection.listener is Listener.CONTROL:
            return Principal(name=connection.peer, scope=TokenScope.ADMIN)
        anonymous = Principal(
            name=f"anonymous@{connection.peer}", scope=TokenScope.ADMIN, anonymous=True
        )
        headers = Headers(scope=scope)
        rule = self._rule_for(scope["method"], scope["path"])
        if rule is not None and rule.access is Access.PUBLIC:
            return anonymous
        if self._tokens is None:
            _refuse_web_pages(headers)
            return anonymous
        principal = _authenticate(headers, self._tokens)
        if principal.scope is TokenScope.ADMIN:
            return principal
        if rule is None or rule.access is not Access.TENANT:
            raise Problem(403, "a tenant's token is not good for this")
        asked = (
            {rule.tenant_id}
            if rule.tenant_id is not None
            else set(_query_values(scope, "tenant_id"))
        )
        if not asked <= {principal.tenant_id}:
            raise Problem(403, "the token is for another tenant")
        return principal


def _authenticate(headers: Headers, tokens: Tokens) -> Principal:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(401, "this call needs a bearer token", headers={"WWW-Authenticate": "Bearer"})
    try:
        return tokens.read(token.strip())
    except BadTokenError as error:
        raise Problem(
            401, str(error), headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
        ) from None


def _query_values(scope: Scope, name: str) -> list[str]:
    # Every value counts: of two, a reader further on takes only one.
    query = scope["query_string"].decode("latin-1")
    return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]


def _refuse_web_pages(headers: Headers) -> None:
    """Refuse what a foreign page makes a browser send: across origins, or by a rebound name."""
    host = _host_name(f"//{headers.get('host', '')}")
    if host and host != "localhost" and not _is_address(host):
        raise Problem(
            403, "without tokens, the server is reached by an address or as localhost only"
        )
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != headers.get("host", ""):
        raise Problem(403, "without tokens, no other web page may call")


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return "?"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
