"""How producer and consumer get their tenants and passwords: from the daemon, over its API."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote

from tenantry.broker.port import Credentials, TenantTopology
from tenantry.domain.names import UserKind
from tenantry.domain.topics import Ordering

Say = Callable[[str], None]

OK: Final = 200
CREATED: Final = 201
CONFLICT: Final = 409
UNAVAILABLE: Final = 503
ANOTHERS: Final = "another-installations"
"""The suffix of the problem type of a conflict with another installation."""

TRIES: Final = 6
FIRST_BACKOFF: Final = 0.25


class ProducerError(Exception):
    """The tenants can't be prepared, or their isolation can't be judged."""


class Api(Protocol):
    """The part of the daemon's API that is needed here."""

    def send(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Make one call; return its status and decoded body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantAccess:
    """A tenant and its broker credentials; `reader` if another of its users reads.

    `created` tells whether the tenant is new, `granted` whether its consumer access is.
    """

    topology: TenantTopology
    credentials: Credentials
    reader: Credentials | None = None
    created: bool = False
    granted: bool = False


def ensure_tenant(
    api: Api, tenant_id: str, *, topics: Sequence[str], partitions: int, say: Say
) -> TenantAccess:
    """Create a tenant; or find it, add the topics it lacks and rotate its password.

    An existing tenant keeps its number of partitions. Raises `ProducerError`.
    """
    made, found = _created_or_found(api, tenant_id, topics, partitions, say)
    if made is not None:
        return TenantAccess(topology=found, credentials=credentials_of(made), created=True)
    return TenantAccess(topology=found, credentials=rotate(api, tenant_id))


def ensure_consumers(
    api: Api, tenant_id: str, *, topics: Sequence[str], partitions: int, say: Say
) -> TenantAccess:
    """Create a tenant, or find it and add the topics it lacks; grant consumer access anew.

    The publishing user keeps its password. Raises `ProducerError`.
    """
    made, found = _created_or_found(api, tenant_id, topics, partitions, say)
    failed = f"tenant {tenant_id} gets no consumer access: "
    body = _call(api, "POST", _path(tenant_id, "consumer-access"), failed=failed)
    return TenantAccess(
        topology=topology_of(body),
        credentials=credentials_of(body["credentials"]),
        created=made is not None,
        granted=not found.consumer_access,
    )


def with_credentials(
    api: Api, tenant_id: str, credentials: Credentials, *, topics: Sequence[str], kind: UserKind
) -> TenantAccess:
    """Find a tenant that has these topics and a user of the kind, and change nothing.

    Raises `ProducerError`.
    """
    found = topology_of(_call(api, "GET", _path(tenant_id)))
    if kind is UserKind.CONSUMER and not found.consumer_access:
        raise ProducerError(
            f"tenant {tenant_id} has no user that consumes: tenantry tenant consumer-access"
            f" {tenant_id}"
        )
    lacking = [topic for topic in topics if topic not in found.topics]
    if lacking and kind is UserKind.PRODUCER:
        raise ProducerError(
            f"tenant {tenant_id} has no topic {lacking[0]!r}: tenantry tenant topics {tenant_id}"
            f" {' '.join(f'--topic {topic}' for topic in lacking)}"
        )
    return TenantAccess(topology=found, credentials=credentials)


def _created_or_found(
    api: Api, tenant_id: str, topics: Sequence[str], partitions: int, say: Say
) -> tuple[Mapping[str, Any] | None, TenantTopology]:
    """Return a created tenant's credentials, or None for an existing one; and its topology."""
    wanted = {
        "id": tenant_id,
        "name": f"Tenant {tenant_id}",
        "topics": list(topics),
        "partitions": partitions,
    }
    status, body = _send(api, "POST", "/tenants", wanted)
    if status == CREATED:
        return body["credentials"], topology_of(body)
    anothers = isinstance(body, dict) and body.get("type", "").endswith(ANOTHERS)
    if status != CONFLICT or anothers:
        raise ProducerError(f"tenant {tenant_id} was not created: {problem(status, body)}")
    found = topology_of(_call(api, "GET", _path(tenant_id)))
    if any(topic not in found.topics for topic in topics):
        more = {"topics": list(topics)}
        path, failed = _path(tenant_id, "topics"), f"tenant {tenant_id} gets no topics: "
        found = topology_of(_call(api, "POST", path, more, failed=failed))
    there = {found.partitions_of(topic) for topic in topics if topic in found.topics}
    if there != {partitions}:
        numbers = " or ".join(str(one) for one in sorted(there))
        say(
            f"Notice: tenant {tenant_id} exists with {numbers} partition(s) a topic; "
            f"they are used, not {partitions}"
        )
    return None, found


def rotate(api: Api, tenant_id: str) -> Credentials:
    """Give a tenant's broker user a new password. Raises `ProducerError`."""
    failed = f"tenant {tenant_id}'s password can't be rotated: "
    body = _call(api, "POST", _path(tenant_id, "credentials", "rotate"), failed=failed)
    return credentials_of(body["credentials"])


def installation_of(api: Api) -> str:
    """Ask for the tenants' installation; empty if the daemon does not tell."""
    status, info = _send(api, "GET", "/info")
    return str(info.get("installation", "")) if status == OK else ""


def every_tenant(api: Api) -> list[TenantTopology]:
    """List the tenants that have their objects on the broker."""
    found: list[TenantTopology] = []
    cursor = ""
    while True:
        page = _call(api, "GET", f"/tenants?limit=500{cursor}")
        found += [topology_of(one) for one in page["data"] if one["state"] in ("active", "paused")]
        if not page.get("next_cursor"):
            return found
        cursor = f"&cursor={quote(page['next_cursor'], safe='')}"


def topology_of(tenant: Mapping[str, Any]) -> TenantTopology:
    """Read a tenant's topology from the API's answer."""
    settings = tenant.get("topic_settings", ())
    return TenantTopology(
        tenant_id=tenant["id"],
        topics=tuple(tenant["topics"]),
        partitions=tenant["partitions"],
        consumer_access=tenant.get("consumer_access", False),
        topic_partitions=tuple(one["partitions"] for one in settings),
        ordered=tuple(one["name"] for one in settings if one["ordering"] == Ordering.PARTITION),
    )


def credentials_of(found: Mapping[str, Any]) -> Credentials:
    """Read credentials from the API's answer. Raises `KeyError`."""
    return Credentials(
        username=found["username"],
        password=found["password"],
        amqp_url=found.get("amqp_url", ""),
        postgres_url=found.get("postgres_url", ""),
        iggy_url=found.get("iggy_url", ""),
    )


def problem(status: int, body: object) -> str:
    """Return a problem document's message in one line."""
    if isinstance(body, dict) and (body.get("detail") or body.get("title")):
        return " ".join(str(body.get("detail") or body["title"]).split())
    return f"status {status}"


def _call(api: Api, method: str, path: str, body: object = None, *, failed: str = "") -> Any:
    """Make a call and return its body. Raises `ProducerError`, whose text begins with `failed`."""
    status, answer = _send(api, method, path, body)
    if status != 200:
        raise ProducerError(f"{failed}{problem(status, answer)}")
    return answer


def _send(api: Api, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Make a call, again for some seconds while the daemon is busy starting or recovering."""
    delay = FIRST_BACKOFF
    for _ in range(TRIES - 1):
        status, decoded = api.send(method, path, body)
        if status != UNAVAILABLE:
            return status, decoded
        threading.Event().wait(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay *= 2
    return api.send(method, path, body)


def _path(tenant_id: str, *rest: str) -> str:
    return "/".join(["/tenants", quote(tenant_id, safe=""), *rest])
