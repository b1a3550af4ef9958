"""Dead letters made, listed, replayed and discarded, for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from tenantry.broker.port import QueuedDeadLetter
from tenantry.dead_letters.port import RejectedMessage
from tenantry.messages.port import Incoming
from tests.api.serving import Served, World


def message(message_id: str | None, body: bytes = b"bad", **fields: Any) -> Incoming:
    given: dict[str, Any] = {
        "topic": "logs",
        "partition": 1,
        "content_type": "application/json",
        "headers": None,
        "published_at_ms": None,
    } | fields
    return Incoming(id=message_id, body=body, **given)


def reject(world: World, *messages: Incoming) -> list[UUID]:
    """List messages as a worker does, and put them into the queue as the broker does."""
    kept = world.letters.add(
        "acme", [RejectedMessage(one, "not_json", "no JSON", 1) for one in messages]
    )
    world.dead_letters.queues.setdefault("acme", []).extend(map(queued, messages))
    return [one.id for one in kept]


def queued(one: Incoming, reason: str = "rejected", second: int = 0) -> QueuedDeadLetter:
    died_at = datetime(2026, 1, 31, 12, 0, second, tzinfo=UTC)
    return QueuedDeadLetter(one, reason, died_at, b"as they were")


def listed(api: Served, **params: str) -> list[dict[str, Any]]:
    answer = api.control.get("/tenants/acme/dead-letters", params=params)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def replay(api: Served, body: object) -> Any:
    answer = api.control.post("/tenants/acme/dead-letters/replay", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


def discard(api: Served, body: object) -> Any:
    answer = api.control.request("DELETE", "/tenants/acme/dead-letters", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()
