"""A replay's way out: a letter's message as it was, to where it came from, marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, Publishing
from tenantry.dead_letters.letters import Letter
from tenantry.domain import names
from tenantry.messages.headers import (
    REPLAY_HEADER,
    REPLAYS_HEADER,
    JsonHeaders,
    UnreadableHeadersError,
)

_EXACT_TIME: Final = "timestamp_in_ms"

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


def send(
    publishing: Publishing, tenant_id: str, letters: Sequence[Letter], *, timeout: float
) -> list[Letter]:
    """Publish letters and give those the broker has confirmed; one that can't be, stays.

    Raises `BrokerUnavailableError`, when some may have been taken.
    """
    try:
        publishing.publish([_outgoing(tenant_id, one) for one in letters], timeout=timeout)
    except BrokerUnavailableError:
        raise
    except BrokerError as error:
        if len(letters) == 1:
            _log.warning(
                "dead_letter.not_replayed",
                tenant=tenant_id,
                letter=str(letters[0].met.id),
                error=str(error),
            )
            return []
        return [
            sent for one in letters for sent in send(publishing, tenant_id, [one], timeout=timeout)
        ]
    return list(letters)


def _outgoing(tenant_id: str, letter: Letter) -> Outgoing:
    message, met, properties = letter.message, letter.met, letter.queued.properties
    marks: dict[str, object] = {REPLAY_HEADER: str(met.id), REPLAYS_HEADER: met.replays}
    headers: Mapping[str, object] = marks
    if properties is None:
        own = message.headers or {}
        if message.published_at_ms is not None and not _tells_time(own):
            marks[_EXACT_TIME] = message.published_at_ms
        # The sender's go out again as they came, read or not.
        headers = own.with_others(marks) if isinstance(own, JsonHeaders) else {**own, **marks}
    default = message.topic == names.DEFAULT_TOPIC
    return Outgoing(
        exchange=names.stream_name(tenant_id),
        routing_key=message.topic if default else f"{message.topic}.{message.partition}",
        body=message.body,
        # Without an id of its own it gets one now, so that the store takes it once.
        message_id=str(met.id) if message.id is None else message.id,
        content_type=message.content_type,
        headers=headers,
        properties=properties,
    )


def _tells_time(headers: Mapping[str, object]) -> bool:
    try:
        return _EXACT_TIME in headers
    except UnreadableHeadersError:
        return False
