"""A request's listener, its caller and their rights: decided before the body is read.

A caller is known by a token, in a header or in the session cookie of the operator's page.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.http.identity import Identity
from tenantry.http.pool import CLIENT
from tenantry.http.problems import Problem, unavailable
from tenantry.http.tokens import BadTokenError, NoRightsError, Principal, TokenUnreadableError
from tenantry.http.tokens import Scope as TokenScope

_CONNECTION_KEY: Final = "tenantry.connection"

RELAYED_PEER: Final = b"tenantry-peer"
"""The header with a request's peer, set by the front on the socket that only the front uses."""

HANDED_ON: Final = b"tenantry-handed-on"
"""The header with the node that handed a request on. It is not trusted: its only effect is that the
request is not handed on again.
"""

MEANT_FOR: Final = b"tenantry-for"
"""The header with the node a request is meant for: nodes on one machine may share an address."""

ELSEWHERE: Final = "Tenantry-Elsewhere"
"""The header of a 503 for a request that was not carried out, as another node owns the tenant or
this node has not begun yet: the node that handed the request on tries again."""

MARKS: Final = frozenset({HANDED_ON, MEANT_FOR})

CALLER: Final = b"tenantry-caller"
"""The header with the caller of a request that a node hands on to another node's control socket. It
is trusted there from processes of the same user, and nowhere else.
"""

SESSION: Final = "tenantry_session"

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)


class Listener(StrEnum):
    """The listener that accepted a request."""

    CONTROL = "control"
    TCP = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A request's listener and peer.

    `peer` names the peer's credentials on the control socket and its address on TCP. `closing`
    is set once the server is about to stop, so that requests that wait are answered. `hang_up`
    closes the connection at once, and drops what is unsent.
    """

    listener: Listener
    peer: str
    closing: asyncio.Event | None = None
    hang_up: Callable[[], None] | None = None


# A request that no listener has marked is treated as the least trusted kind.
_UNKNOWN: Final = Connection(listener=Listener.TCP, peer="unknown")


def mark(scope: MutableMapping[str, Any], connection: Connection) -> None:
    """Mark a request's scope with its listener. Only listeners call this."""
    scope[_CONNECTION_KEY] = connection


def connection_of(scope: MutableMapping[str, Any]) -> Connection:
    """Give a request's listener and peer."""
    found = scope.get(_CONNECTION_KEY)
    return found if isinstance(found, Connection) else _UNKNOWN


_PRINCIPAL_KEY: Final = "tenantry.principal"


class Access(StrEnum):
    """Who may call a route on TCP with tokens in use; an admin always may."""

    PUBLIC = "public"
    """Anyone, without a token."""
    TENANT = "tenant"
    """The tenant that the request is about."""
    TENANT_READ = "tenant, read"
    """That tenant, and operators with `read`."""
    TENANT_PAYLOADS = "tenant, payloads"
    """That tenant, and operators with `read` and `payloads`."""
    TENANT_OPERATE = "tenant, operate"
    """That tenant, and operators with `operate`."""
    READ = "read"
    """Operators with `read`."""
    OPERATE = "operate"
    """Operators with `operate`."""
    ADMIN = "admin"
    """Admins alone."""

    @property
    def is_tenants(self) -> bool:
        """Whether a tenant may make such a request about itself."""
        return self in _OF_TENANTS

    def admits(self, scope: TokenScope, *, payloads: bool) -> bool:
        """Tell whether an operator's scope is enough."""
        if self is Access.PUBLIC or scope is TokenScope.ADMIN:
            return True
        if self in {Access.OPERATE, Access.TENANT_OPERATE}:
            return scope is TokenScope.OPERATE
        if self is Access.TENANT_PAYLOADS and not payloads:
            return False
        return self in _OF_READERS and scope in {TokenScope.READ, TokenScope.OPERATE}


_OF_TENANTS: Final = frozenset(
    {Access.TENANT, Access.TENANT_READ, Access.TENANT_PAYLOADS, Access.TENANT_OPERATE}
)
_OF_READERS: Final = frozenset({Access.READ, Access.TENANT_READ, Access.TENANT_PAYLOADS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The access table's entry for a request; `tenant_id` is that in the path, if there is one."""

    access: Access
    tenant_id: str | None


def principal_of(scope: Scope) -> Principal:
    """Give the caller of a request that was let through."""
    principal = scope[_PRINCIPAL_KEY]
    assert isinstance(principal, Principal)  # noqa: S101 - set by the middleware below, always
    return principal


def client_of(scope: Scope) -> str:
    """Name the client that limits are counted for: a token's tenant, its holder, or an address.

    A tenant is one client, whatever names its tokens are issued to: otherwise many names would take
    all the room. A client on the control socket is named by its credentials.
    """
    principal, connection = principal_of(scope), connection_of(scope)
    if connection.listener is Listener.TCP and not principal.anonymous:
        return f"{principal.tenant_id}/" if principal.tenant_id else f"/{principal.name}"
    return connection.peer


def caller_header(scope: Scope) -> tuple[bytes, bytes]:
    """Give the header that tells another node the caller of a request that is handed on."""
    who = principal_of(scope)
    said = {
        "name": who.name,
        "scope": who.scope.value,
        "tenant_id": who.tenant_id,
        "anonymous": who.anonymous,
        "issued_at": who.issued_at,
        "expires_at": who.expires_at,
        "payloads": who.payloads,
        "client": client_of(scope),
    }
    return CALLER, base64.urlsafe_b64encode(orjson.dumps(said))


def _caller_said(value: str) -> tuple[Principal, str]:
    """Read that header: the caller, and the client that limits count for; 400 if malformed."""
    try:
        said = orjson.loads(base64.urlsafe_b64decode(value.encode("ascii")))
        scope = TokenScope(said["scope"])
        principal = Principal(
            name=str(said["name"]),
            scope=scope,
            tenant_id=said["tenant_id"],
            anonymous=said["anonymous"] is True,
            issued_at=None if said["issued_at"] is None else float(said["issued_at"]),
            # Earlier versions do not send it.
            expires_at=None if said.get("expires_at") is None else float(said["expires_at"]),
            # Earlier versions do not send it, and have these two scopes only.
            payloads=scope in {TokenScope.ADMIN, TokenScope.TENANT} or said["payloads"] is True,
        )
        client = str(said["client"])
    except (ValueError, KeyError, TypeError):
        raise Problem(400, "the header that names a caller can't be read") from None
    # Of two kinds only: an operator, or one tenant.
    if (principal.scope is TokenScope.TENANT) != isinstance(principal.tenant_id, str):
        raise Problem(400, "the header that names a caller can't be read")
    return principal, client


def _is_own_user(peer: str) -> bool:
    """Tell whether the peer on the control socket is this process's user, or root."""
    uid, _, _ = peer.partition(" ")
    # Without credentials from the kernel, the mode of the socket's file has decided.
    return uid in {f"uid={os.getuid()}", "uid=0"} or not uid.startswith("uid=")


class Authentication:
    """Lets a request through, or answers 401 or 403.

    On the control socket the file's mode has already decided, and the peer's credentials name the
    caller; another node names its own caller, who keeps the rights they have there. On TCP with
    tokens the access table decides; routes that it does not name are for admins. On TCP without
    tokens every program on this machine is let in, but no web page open in a browser on it.
    """

    def __init__(
        self, app: ASGIApp, *, identity: Identity, rule_for: Callable[[str, str], Rule | None]
    ) -> None:
        """`identity` reads tokens; `rule_for` gives the rule of a method and path."""
        self._app = app
        self._rule_for = rule_for
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            rule = self._rule_for(scope["method"], scope["path"])
            try:
                scope[_PRINCIPAL_KEY] = await self._admit(scope, rule)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
            turn = CLIENT.set(_whose_turn(scope, rule))
            try:
                await self._app(scope, receive, send)
            finally:
                CLIENT.reset(turn)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, rule: Rule | None) -> Principal:
        connection = connection_of(scope)
        if connection.listener is Listener.CONTROL:
            return self._on_control_socket(scope, connection, rule)
        anonymous = Principal(
            name=f"anonymous@{connection.peer}", scope=TokenScope.ADMIN, anonymous=True
        )
        headers = Headers(scope=scope)
        if rule is not None and rule.access is Access.PUBLIC:
            return anonymous
        if not self._identity.is_asked_for:
            _refuse_web_pages(headers)
            return anonymous
        principal = await _authenticate(headers, self._identity)
        _judge(principal, rule, scope)
        return principal

    def _on_control_socket(
        self, scope: Scope, connection: Connection, rule: Rule | None
    ) -> Principal:
        said = Headers(scope=scope).getlist(CALLER.decode())
        if not said:
            return Principal(name=connection.peer, scope=TokenScope.ADMIN)
        if len(said) > 1 or not _is_own_user(connection.peer):
            raise Problem(403, "only another node, of the same user, may say who calls")
        principal, client = _caller_said(said[0])
        _judge(principal, rule, scope)
        mark(scope, replace(connection, peer=client))
        return principal


def _whose_turn(scope: Scope, rule: Rule | None) -> str:
    """Name the tenant that a request is about, else the tenant that calls, else nothing."""
    if rule is not None and rule.access is Access.PUBLIC:
        return ""  # without a known caller: any client could name a tenant, and take its turns
    if rule is not None and rule.tenant_id is not None:
        return rule.tenant_id
    if (own := principal_of(scope).tenant_id) is not None:
        return own
    asked = _query_values(scope, "tenant_id") if scope["query_string"] else []
    return asked[0] if asked else ""


def _judge(principal: Principal, rule: Rule | None, scope: Scope) -> None:
    """Let operators with enough scope pass, and tenants about themselves; 403 for others."""
    if principal.scope is TokenScope.ADMIN or (rule and rule.access is Access.PUBLIC):
        return
    if principal.scope is not TokenScope.TENANT:
        if rule is not None and rule.access.admits(principal.scope, payloads=principal.payloads):
            return
        if rule is not None and rule.access.admits(principal.scope, payloads=True):
            raise Problem(403, "what is in messages takes a token with payloads in its scope")
        raise Problem(403, f"the scope {principal.scope.value} is not good for this")
    if rule is None or not rule.access.is_tenants:
        raise Problem(403, "a tenant's token is not good for this")
    asked = (
        {rule.tenant_id} if rule.tenant_id is not None else set(_query_values(scope, "tenant_id"))
    )
    if not asked <= {principal.tenant_id}:
        raise Problem(403, "the token is for another tenant")


async def is_still_let_in(scope: Scope, identity: Identity) -> bool:
    """Tell whether a running request would be let through again: streams ask while they go on."""
    if connection_of(scope).listener is Listener.CONTROL:
        return True
    if not identity.is_asked_for or principal_of(scope).anonymous:
        return not identity.is_asked_for
    try:
        await _authenticate(Headers(scope=scope), identity)
    except Problem as problem:
        return problem.status not in {401, 403}  # a check that can't be made now ends nothing
    return True


async def _authenticate(headers: Headers, identity: Identity) -> Principal:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(401, "this call needs a bearer token", headers={"WWW-Authenticate": "Bearer"})
    try:
        return await identity.read(token.strip())
    except BadTokenError as error:
        raise Problem(
            401, str(error), headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}
        ) from None
    except NoRightsError as error:
        raise Problem(
            403, str(error), headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
        ) from None
    except TokenUnreadableError as error:
        raise unavailable(str(error), code="identity-unavailable") from None


def _query_values(scope: Scope, name: str) -> list[str]:
    # Every value counts: of two parameters of one name, a later reader takes only one.
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
