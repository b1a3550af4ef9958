"""What a tenant's user can reach on RabbitMQ's management API: nothing, or it is a leak.

It shows every queue, user and connection of a virtual host, and lets whoever it takes publish and
read there. It takes users with a tag only, and tenants' users have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls, problem
from tenantry.isolation.checks import Check, Notes
from tenantry.tenant_client.access import TenantNames
from tenantry.tenant_client.amqp import AttemptResult, TenantClientError

if TYPE_CHECKING:
    from tenantry.broker.port import Credentials

TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 3.0
"""Seconds."""

PATHS: Final = ("/api/whoami", "/api/queues")

_REFUSED: Final = {401, 403}


def own(
    address: str, credentials: Credentials, mine: TenantNames, tls: Tls = SYSTEMS
) -> list[Check]:
    """Try the management API at `address` with the tenant's own credentials.

    That these are right must be known otherwise: wrong ones are refused in the same way. Raises
    `TenantClientError` where the API can't be reached, or says neither yes nor no.
    """
    import httpx

    notes = Notes(mine, mine)
    timeout = httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT)
    login = (credentials.username, credentials.password)
    try:
        verify = tls.context() if address.startswith("https") else False
        # Neither a proxy nor a .netrc stands between us and the broker.
        with httpx.Client(auth=login, timeout=timeout, trust_env=False, verify=verify) as client:
            for path in PATHS:
                # A list of queues may be long; the status says it all.
                with client.stream("GET", address + path) as response:
                    verdict = _verdict(response.status_code, address)
                notes.note("read", f"{path} (the management API)", verdict, forbidden=True)
    except httpx.HTTPError as error:
        reason = problem(error) or str(error) or type(error).__name__
        raise TenantClientError(
            f"the management API at {address} can't be reached: {reason}"
        ) from error
    return notes.checks


def _verdict(status: int, address: str) -> AttemptResult:
    if status in _REFUSED:
        return AttemptResult.REFUSED
    if 200 <= status < 300:
        return AttemptResult.ALLOWED
    raise TenantClientError(f"the management API at {address} answered {status}")
