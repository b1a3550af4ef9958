"""Finding what a request names."""

from __future__ import annotations

from tenantry.api.times import parse_time
from tenantry.domain import names
from tenantry.domain.errors import WrongStateError
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.problems import Problem, former_token, invalid, no_such_tenant
from tenantry.http.tokens import Principal, Scope
from tenantry.messages.port import Whose, whose
from tenantry.projections.port import TenantDirectory

_MAX_VERSION_DIGITS = 9


def checked_id(tenant_id: str) -> str:
    """Give the id back, or answer 404: what can't name a tenant names none."""
    if not names.is_tenant_id(tenant_id):
        raise no_such_tenant()
    return tenant_id


def admit(who: Principal, whose: Whose) -> None:
    """Let the tenant itself and admins pass; 401 for who was a former tenant of the id."""
    if who.is_former(whose.incarnation, whose.since):
        raise former_token()


def known(directory: TenantDirectory, tenant_id: str, who: Principal) -> TenantState:
    """Find a tenant that exists or has existed. Blocks; 401, 404."""
    state = directory.get(checked_id(tenant_id))
    if state is None:
        raise no_such_tenant()
    admit(who, whose(state))
    return state


def existing(directory: TenantDirectory, tenant_id: str, who: Principal) -> TenantState:
    """Find a tenant that exists. Blocks; 401, 404."""
    state = known(directory, tenant_id, who)
    if not state.exists:
        raise no_such_tenant()
    return state


def publishable(directory: TenantDirectory, tenant_id: str, who: Principal) -> TenantState:
    """Find a tenant that takes messages. Blocks; 401, 404, 409."""
    state = existing(directory, tenant_id, who)
    if state.lifecycle not in (Lifecycle.ACTIVE, Lifecycle.PAUSED):
        raise WrongStateError(tenant_id, state.lifecycle.value, "take messages")
    return state


def readable(directory: TenantDirectory, tenant_id: str, who: Principal) -> TenantState:
    """Find a tenant whose messages may be read: a deleted one if they were retained. Blocks."""
    state = known(directory, tenant_id, who)
    if not (state.exists or state.retained):
        raise no_such_tenant()
    return state


def past(directory: TenantDirectory, tenant_id: str, at: str, who: Principal) -> TenantState:
    """Find a tenant as of a time or version. Blocks; 401, 404 before it was created, 422.

    A tenant itself sees its own past, not that of a former one.
    """
    checked_id(tenant_id)
    own = None if who.scope is Scope.ADMIN else known(directory, tenant_id, who).incarnation
    if at.isascii() and at.isdecimal():
        digits = at.lstrip("0")
        # No tenant has a billion events, and the database's numbers end somewhere.
        fits = 0 < len(digits) <= _MAX_VERSION_DIGITS
        state = directory.as_of_version(tenant_id, int(digits)) if fits else None
    else:
        moment = parse_time(at)
        if moment is None:
            raise invalid([("at", "must be an RFC 3339 time with a zone, or a version number")])
        state = directory.as_of_time(tenant_id, moment)
    if state is None or own not in {None, state.incarnation}:
        raise Problem(
            404,
            "there was no such tenant then",
            code="tenant-not-found",
            title="No such tenant",
        )
    return state
