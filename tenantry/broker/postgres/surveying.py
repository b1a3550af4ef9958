"""What the embedded broker has, in the words in which RabbitMQ is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tenantry.broker import topology as layout
from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres.users import told_of
from tenantry.broker.survey import Survey
from tenantry.domain import names


def surveyed(
    queues: Iterable[tuple[Any, ...]],
    bindings: Iterable[tuple[Any, ...]],
    roles: Iterable[tuple[Any, ...]],
    passwords: Mapping[str, str],
    installation: str,
) -> Survey:
    """Make a survey of rows.

    What every tenant has here without being asked is there as long as its default queue is: the
    dead-letter exchange, its own queue on it, and that a queue's rejects go there.
    """
    exchanges = {names.DEAD_LETTER_EXCHANGE: "direct"}
    arguments: dict[str, Mapping[str, object]] = {}
    bound = {(stream, queue, key) for stream, queue, key in bindings}
    consumed: set[str] = set()
    for name, tenant_id, has_consumer in queues:
        plan = layout.plan(TenantTopology(tenant_id=tenant_id, topics=(), partitions=1), "classic")
        letters, default = plan.queues
        exchanges[names.stream_name(tenant_id)] = "direct"
        arguments[name] = default.arguments
        if name == default.name:
            arguments[letters.name] = letters.arguments
            bound.add((names.DEAD_LETTER_EXCHANGE, letters.name, tenant_id))
        if has_consumer:
            consumed.add(name)
    return Survey(
        exchanges=exchanges,
        queues=arguments,
        bindings=frozenset(bound),
        users={
            name: told_of(
                name,
                told,
                allowed=allowed,
                groups=groups,
                password=passwords.get(name, kept or ""),
                powerful=powerful,
            )
            for name, powerful, kept, allowed, told, groups in roles
        },
        consumed=frozenset(consumed),
        installation=installation,
    )
