"""What RabbitMQ tells of a message it has dead-lettered, in the headers it adds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from tenantry.broker.port import QueuedDeadLetter
from tenantry.domain import names
from tenantry.messages.port import Incoming

UNKNOWN: Final = "unknown"
"""The reason of a message that tells none: somebody has put it into the queue directly."""

_BROKERS_OWN: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")


def queued_dead_letter(tenant_id: str, message: Incoming, properties: bytes) -> QueuedDeadLetter:
    """Make what a walk gives of a message in the tenant's dead-letter queue."""
    headers = message.headers or {}
    own = {name: value for name, value in headers.items() if not name.startswith(_BROKERS_OWN)}
    death = _last_death(headers)
    topic, partition = _place(tenant_id, death.get("queue", headers.get("x-first-death-queue")))
    reason, time = death.get("reason"), death.get("time")
    return QueuedDeadLetter(
        message=message._replace(topic=topic, partition=partition, headers=own or None),
        reason=reason if isinstance(reason, str) and reason else UNKNOWN,
        died_at=time if isinstance(time, datetime) else None,
        properties=properties,
    )


def _last_death(headers: Mapping[str, object]) -> Mapping[str, object]:
    """Give the newest death, which stands first."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    return first if isinstance(first, dict) else {}


def _place(tenant_id: str, queue: object) -> tuple[str, int]:
    """Tell topic and partition by the queue a message died in; the default one otherwise.

    By the newest death, which only the broker can have written: a client may have sent headers of
    these names itself, and then `x-first-death-queue` is what it says, or is missing.
    """
    prefix = f"{names.stream_name(tenant_id)}."
    if isinstance(queue, str) and queue.startswith(prefix):
        topic, _, partition = queue.removeprefix(prefix).rpartition(".")
        if names.is_topic(topic) and partition.isdecimal() and len(partition) < 6:
            return topic, int(partition)
    return names.DEFAULT_TOPIC, 0
