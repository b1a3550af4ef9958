"""Messages on their way into the store."""

from __future__ import annotations

from tenantry.messages.port import Incoming

TENANT = "t"


def incoming(
    identity: str | None = "1",
    body: bytes = b"{}",
    content_type: str | None = "application/json",
    topic: str = "default",
    headers: dict[str, object] | None = None,
    published: int | None = None,
) -> Incoming:
    return Incoming(identity, topic, 0, body, content_type, headers, published)
