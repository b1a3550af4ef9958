"""What all who consume from RabbitMQ do with their channels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
from pika.exceptions import ChannelClosedByBroker, ChannelWrongStateError

from tenantry.broker.port import Delivery

if TYPE_CHECKING:
    from pika.channel import Channel

NOT_FOUND: Final = 404

log = structlog.get_logger(__name__)

ACKS_SETTLE: Final = 0.3
"""Seconds between the last ack and the end of its channel.

A quorum queue's side of the channel holds acks back while many are under way, and forgets them
when the channel ends; AMQP has no word by which it would tell that they are through. What is
forgotten is delivered again, and found to be a duplicate: this only makes that rare.
"""


def acks_settle_in(settled_at: float) -> float:
    """Give the seconds after which acks sent at `settled_at` may be taken to be through."""
    return max(0.0, settled_at + ACKS_SETTLE - time.monotonic())


def end(channel: Channel) -> None:
    """Close a channel, which may be closed by now."""
    try:
        channel.close()
    except ChannelWrongStateError:
        log.debug("broker.channel_was_closed")


def is_not_found(error: BaseException) -> bool:
    """Tell whether the broker closed a channel for a queue that does not exist."""
    return isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND


def taker(buffer: list[Delivery], flush_soon: Callable[[], object]) -> Callable[[Delivery], None]:
    """Make what takes a channel's deliveries, one by one: the hottest code there is."""

    def take(delivery: Delivery) -> None:
        if not buffer:
            # Everything one read of the socket brings becomes one batch.
            flush_soon()
        buffer.append(delivery)

    return take


def passed_by(*_delivery: object) -> None:
    """Stand in for the callback that pika wants; deliveries take another way."""
    raise AssertionError("a delivery took pika's way")
