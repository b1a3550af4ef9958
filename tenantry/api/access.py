"""Who may call what: every route of the API stands in this one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import BaseRoute, Route, compile_path

from tenantry.http.auth import Access, Rule
from tenantry.http.tokens import Scope


class _Any(Convertor[str]):
    """The rest of a path, line breaks included, at which Starlette's `path` would stop."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Any())

TABLE: Final[dict[tuple[str, str], Access]] = {
    ("GET", "/healthz"): Access.PUBLIC,
    ("GET", "/readyz"): Access.PUBLIC,
    ("GET", "/openapi.json"): Access.PUBLIC,
    ("GET", "/docs"): Access.PUBLIC,
    ("GET", "/swagger/{asset}"): Access.PUBLIC,
    ("GET", "/tenants/{tenant_id}"): Access.TENANT_READ,
    ("GET", "/tenants/{tenant_id}/stats"): Access.TENANT_READ,
    ("GET", "/tenants/{tenant_id}/asyncapi.json"): Access.TENANT_READ,
    ("POST", "/tenants/{tenant_id}/messages"): Access.TENANT,
    ("GET", "/tenants/{tenant_id}/events"): Access.TENANT_READ,
    ("GET", "/tenants/{tenant_id}/messages/{message_id:any}"): Access.TENANT_PAYLOADS,
    ("GET", "/messages"): Access.TENANT_PAYLOADS,
    ("GET", "/messages/stream"): Access.TENANT_PAYLOADS,
    ("GET", "/tenants/{tenant_id}/dead-letters"): Access.TENANT_READ,
    ("GET", "/tenants/{tenant_id}/dead-letters/{letter_id}"): Access.TENANT_READ,
    ("POST", "/tenants/{tenant_id}/dead-letters/replay"): Access.TENANT_OPERATE,
    ("DELETE", "/tenants/{tenant_id}/dead-letters"): Access.TENANT,
    ("POST", "/tenants"): Access.ADMIN,
    ("GET", "/tenants"): Access.READ,
    ("DELETE", "/tenants/{tenant_id}"): Access.ADMIN,
    ("PUT", "/tenants/{tenant_id}/config/concurrency"): Access.OPERATE,
    ("PUT", "/tenants/{tenant_id}/limits"): Access.OPERATE,
    ("POST", "/tenants/{tenant_id}/pause"): Access.OPERATE,
    ("POST", "/tenants/{tenant_id}/resume"): Access.OPERATE,
    ("POST", "/tenants/{tenant_id}/credentials/rotate"): Access.ADMIN,
    ("POST", "/tenants/{tenant_id}/sql-access"): Access.ADMIN,
    ("DELETE", "/tenants/{tenant_id}/sql-access"): Access.ADMIN,
    ("POST", "/tenants/{tenant_id}/consumer-access"): Access.ADMIN,
    ("DELETE", "/tenants/{tenant_id}/consumer-access"): Access.ADMIN,
    ("POST", "/tenants/{tenant_id}/topics"): Access.ADMIN,
    ("POST", "/tenants/{tenant_id}/move"): Access.ADMIN,
    ("GET", "/nodes"): Access.READ,
    ("POST", "/nodes/{node}/drain"): Access.ADMIN,
    ("POST", "/nodes/{node}/undrain"): Access.ADMIN,
    ("POST", "/runtime"): Access.READ,
    ("GET", "/events"): Access.READ,
    ("GET", "/events/parts"): Access.READ,
    ("POST", "/events/parts"): Access.ADMIN,
    ("GET", "/events/parts/{part}/lines"): Access.READ,
    ("PUT", "/events/parts/{part}/lines"): Access.ADMIN,
    ("POST", "/events/parts/{part}/archive"): Access.ADMIN,
    ("POST", "/events/parts/{part}/restore"): Access.ADMIN,
    ("GET", "/tenants/{tenant_id}/audit"): Access.READ,
    ("GET", "/audit"): Access.READ,
    ("POST", "/isolation"): Access.ADMIN,
    ("GET", "/status"): Access.READ,
    ("GET", "/overview"): Access.READ,
    ("GET", "/whoami"): Access.TENANT_READ,
    ("POST", "/login-codes"): Access.ADMIN,
    ("GET", "/info"): Access.READ,
    ("GET", "/metrics"): Access.READ,
    ("POST", "/drain"): Access.ADMIN,
    ("POST", "/stop"): Access.ADMIN,
}

LOOKS_BY_POST: Final = frozenset({("POST", "/runtime")})
"""Calls that change nothing although they are no GET: their input would not fit into a URL."""


_COMPILED: Final = [(call, compile_path(call[1])[0]) for call in TABLE]


PAGE: Final = "/ui"
"""The path of the operator's page. The page itself takes no right: everything it shows or does is a
call of the routes above, in its viewer's name.
"""


def is_page(path: str) -> bool:
    """Tell whether a path belongs to the operator's page."""
    return path == PAGE or path.startswith(f"{PAGE}/")


def may(call: tuple[str, str], scope: Scope, *, payloads: bool) -> bool:
    """Tell whether a scope permits a call; for the scope `tenant`, a call about that tenant."""
    access = TABLE[call]
    if scope is Scope.TENANT:
        return access is Access.PUBLIC or access.is_tenants
    return access.admits(scope, payloads=payloads)


def rule_for(method: str, path: str) -> Rule | None:
    """Find the rule of a request; None if no route answers it. HEAD counts as GET."""
    if is_page(path):
        return Rule(access=Access.PUBLIC, tenant_id=None)
    found = call_of("GET" if method == "HEAD" else method, path)
    return None if found is None else Rule(access=TABLE[found[0]], tenant_id=found[1])


def call_of(method: str, path: str) -> tuple[tuple[str, str], str | None] | None:
    """Find the call in `TABLE` that a request makes, and the tenant in its path, if any."""
    for call, pattern in _COMPILED:
        if call[0] == method and (match := pattern.match(path)):
            return call, match.groupdict().get("tenant_id")
    return None


def shown(path: str) -> str:
    """Give a route's path as the OpenAPI document writes it."""
    return compile_path(path)[1]


def methods_of(path: str) -> list[str]:
    """Tell which methods a path takes."""
    methods = {method for (method, _), pattern in _COMPILED if pattern.match(path)}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Raise `RuntimeError` unless the table and the routes agree, to the last method.

    Raise it as well if a call that changes something is open to the scope `read`.
    """
    there = set()
    for route in routes:
        if not isinstance(route, Route):
            raise RuntimeError(  # noqa: TRY004 - a mistake of the program's, not of a type
                f"{route!r} is no plain route, so no rule of access can hold for it"
            )
        there |= {(method, route.path) for method in route.methods or ()}
    if there != TABLE.keys():
        raise RuntimeError(
            f"routes without a rule of access: {sorted(there - TABLE.keys())}; "
            f"rules without a route: {sorted(TABLE.keys() - there)}"
        )
    changing = {
        (method, path)
        for (method, path), given in TABLE.items()
        if method != "GET" and given.admits(Scope.READ, payloads=True)
    }
    if changing != LOOKS_BY_POST:
        raise RuntimeError(f"who may only read may change something: {sorted(changing)}")
