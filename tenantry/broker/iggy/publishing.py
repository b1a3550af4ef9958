"""Publishing to Iggy: the server's answer to a batch is the confirm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from tenantry.broker.iggy.client import MissingError, Session, Sessions, library
from tenantry.broker.iggy.dead_letters import IggyDeadLetters
from tenantry.broker.iggy.headers import sendable, unpack, uuid_of
from tenantry.broker.iggy.topology import Place, routed
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, UnroutableError
from tenantry.domain import names
from tenantry.messages.headers import UnreadableHeadersError

if TYPE_CHECKING:
    from apache_iggy import SendMessage

AT_ONCE: Final = 1000
AT_ONCE_BYTES: Final = 16 * 1024 * 1024
"""The most in one request; a single message may be larger."""


class IggyPublishing:
    """Publishes on a few connections. Callable from any thread."""

    singly: Final = False

    def __init__(self, sessions: Sessions, dead_letters: IggyDeadLetters) -> None:
        """Messages to the dead-letter exchange are put among `dead_letters`."""
        self._sessions = sessions
        self._dead_letters = dead_letters

    @property
    def reconnects(self) -> int:
        """How often a connection was opened beyond the first."""
        return max(0, self._sessions.opened - 1)

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Return once the server has confirmed every message.

        Raises `UnroutableError`; `BrokerUnavailableError`, if some may have been accepted; and
        `BrokerError` for a message that Iggy refuses.
        """
        if not messages:
            return
        until = time.monotonic() + timeout
        with self._sessions.session() as session:
            for place, part in groupby(messages, lambda one: routed(one.exchange, one.routing_key)):
                group = list(part)
                if place.stream == names.DEAD_LETTER_EXCHANGE:
                    self._dead_letters.put(group)
                    continue
                for batch in _batches([made(one) for one in group], group):
                    send(session, place, batch, until)


def send(session: Session, place: Place, batch: list[SendMessage], until: float) -> None:
    """Send messages to a partition in one request, confirmed by `until`, a monotonic time.

    Raises as `IggyPublishing.publish`.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise BrokerUnavailableError("Iggy has not confirmed in time")
    partition = library().Partitioning.partition_id(place.partition)
    try:
        session.call(
            lambda client: client.send_messages(place.stream, place.topic, partition, batch),
            timeout=left,
        )
    except MissingError as error:
        raise UnroutableError(
            f"nothing takes messages for {place.topic}.{place.partition} of {place.stream}"
        ) from error


def _batches(sent: list[SendMessage], group: list[Outgoing]) -> list[list[SendMessage]]:
    batches: list[list[SendMessage]] = [[]]
    size = 0
    for message, outgoing in zip(sent, group, strict=True):
        if batches[-1] and (
            len(batches[-1]) >= AT_ONCE or size + len(outgoing.body) > AT_ONCE_BYTES
        ):
            batches.append([])
            size = 0
        batches[-1].append(message)
        size += len(outgoing.body)
    return batches


def made(outgoing: Outgoing) -> SendMessage:
    """Make a message for Iggy. Raises `BrokerError`."""
    iggy = library()
    own = uuid_of(outgoing.message_id or "")
    # Iggy's own field holds nothing but a UUID: any other id goes among the headers.
    named = outgoing.message_id if own is None else None
    try:
        if outgoing.properties is not None:
            number, headers = unpack(outgoing.properties)
            headers |= sendable(None, None, outgoing.headers or {})
            if not number:
                headers = {**sendable(named, None, {}), **headers}
            own = number or own
        else:
            headers = sendable(named, outgoing.content_type, outgoing.headers or {})
        message: SendMessage = iggy.SendMessage(outgoing.body, headers or None, own or None)
    except UnreadableHeadersError as error:
        raise BrokerError(f"a message's headers can't be sent to Iggy: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokerError(f"Iggy takes no such message: {error}") from error
    return message
