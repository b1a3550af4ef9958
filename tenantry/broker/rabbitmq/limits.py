"""How RabbitMQ enforces a tenant's limits: by limits of its users and an operator policy.

An operator policy limits queues beside any policy they have. Messages beyond the limit are refused,
as tenants' queues demand (`x-overflow`). A classic queue does not demand it and would drop its
oldest messages: it gets no limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tenantry.broker import topology as layout
from tenantry.broker.port import BrokerError, KeptLimits, TenantTopology
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.domain import names
from tenantry.domain.limits import Limits
from tenantry.domain.names import UserKind

_OF_USERS: Final[Mapping[str, str]] = {"connections": "max-connections", "channels": "max-channels"}
_OF_QUEUES: Final[Mapping[str, str]] = {
    "backlog_messages": "max-length",
    "backlog_bytes": "max-length-bytes",
}
_POLICY: Final = re.compile(rf"tenant_(?P<tenant>{names.TENANT_ID.pattern})_backlog", re.ASCII)

_NEVER_FULL: Final = {"max-length": 10**12, "max-length-bytes": 10**15}

PRIORITY: Final = 100
"""Above an operator policy for all queues: of several that match, only one applies."""


def kept(queue_type: layout.QueueType) -> KeptLimits:
    """Return the limits that can be enforced if queues are made of this type."""
    if queue_type == "quorum":
        return KeptLimits(broker="RabbitMQ", names=frozenset({*_OF_USERS, *_OF_QUEUES}))
    return KeptLimits(broker="RabbitMQ with classic queues", names=frozenset(_OF_USERS))


def policy_name(tenant_id: str) -> str:
    """Return the name of the operator policy for a tenant's queues."""
    return f"tenant_{tenant_id}_backlog"


def limits_of(topology: TenantTopology, limits: Limits) -> dict[str, object]:
    """Return the settings that enforce a tenant's limits: by user, and by operator policy."""
    found: dict[str, object] = {}
    if of_users := _named(_OF_USERS, limits):
        for kind in UserKind:
            if kind is UserKind.PRODUCER or topology.consumer_access:
                found[f"user {names.username(topology.tenant_id, kind)}"] = of_users
    if of_queues := _named(_OF_QUEUES, limits):
        queues = len(topology.queues())
        found[f"operator policy {policy_name(topology.tenant_id)}"] = {
            "pattern": layout.permissions(topology.tenant_id).read,
            "apply-to": "queues",
            "priority": PRIORITY,
            # A queue's share: all queues together hold what the tenant may have waiting.
            "definition": {key: -(-value // queues) for key, value in of_queues.items()},
        }
    return found


def surveyed(management: ManagementClient, users: frozenset[str]) -> dict[str, dict[str, object]]:
    """Return the settings that limit tenants, by tenant: of `users`, and in the virtual host."""
    found: dict[str, dict[str, object]] = {}
    for user, of_user in management.user_limits().items():
        tenant_id = layout.owner_of(user)
        if of_user and tenant_id is not None and user in users:
            found.setdefault(tenant_id, {})[f"user {user}"] = of_user
    for name, policy in management.operator_policies().items():
        if (match := _POLICY.fullmatch(name)) is not None:
            found.setdefault(match["tenant"], {})[f"operator policy {name}"] = policy
    return found


def limit_user(management: ManagementClient, name: str, wanted: object) -> None:
    """Set these limits of a user, and remove all others."""
    limits: Mapping[str, int] = wanted if isinstance(wanted, dict) else {}
    there = management.user_limits(name).get(name, {})
    for limit in _OF_USERS.values():
        if limit in limits and there.get(limit) != limits[limit]:
            management.put_user_limit(name, limit, limits[limit])
        elif limit not in limits and limit in there:
            management.delete_user_limit(name, limit)


def limit_queues(management: ManagementClient, tenant_id: str, wanted: object) -> None:
    """Set or remove the policy of a tenant's queues. Raises `BrokerError` for a classic one."""
    name = policy_name(tenant_id)
    if not isinstance(wanted, dict):
        if (there := management.operator_policies().get(name)) is not None:
            # Without any limit, a queue that has refused messages would never tell the channels
            # that it accepts them again; with a higher limit it does.
            management.put_operator_policy(name, {**there, "definition": _NEVER_FULL})
            management.delete_operator_policy(name)
        return
    for queue, arguments in management.queue_arguments(wanted["pattern"]).items():
        if arguments.get("x-overflow") != "reject-publish":
            raise BrokerError(
                f"queue {queue!r} would drop messages instead of refusing them, as it is a classic "
                "one: empty and delete it, and it is made anew as a quorum queue"
            )
    policy: dict[str, Any] = wanted
    management.put_operator_policy(name, policy)


def _named(names_of: Mapping[str, str], limits: Limits) -> dict[str, int]:
    there = limits.of_the_broker
    return {key: there[name] for name, key in names_of.items() if name in there}
