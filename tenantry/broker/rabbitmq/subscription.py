"""One tenant's subscription on RabbitMQ: a channel at a time, as long as deliveries are wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog
from pika.exceptions import ChannelClosed

from tenantry.broker.budget import Admission, Budget
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.broker.rabbitmq.connection import describe, is_not_found
from tenantry.broker.rabbitmq.consuming_channel import ConsumingChannel
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.reading import ReadingConnection
from tenantry.telemetry.logging import Sparing

log = structlog.get_logger(__name__)

REOPEN_AFTER: Final = 1.0
"""Seconds before a channel that the broker closed is opened again."""


class RabbitSubscription:
    """One tenant's channels, one after the other, each a generation.

    Its fields belong to the loop's thread; the port's public calls are passed to that thread.
    """

    def __init__(
        self,
        loop: IoLoop,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
        forget: Callable[[RabbitSubscription], None],
        budget: Budget,
    ) -> None:
        self.wanted = True
        """Whether deliveries are wanted."""
        self.asked_at = 0.0
        """When the subscription last asked to consume its queues."""
        self.answered_at = 0.0
        self._loop = loop
        self._queues = tuple(queues)
        self._admission = Admission(budget, prefetch=prefetch, queues=len(self._queues))
        self._sink = sink
        self._forget = forget
        self._connection: ReadingConnection | None = None
        self._channel: ConsumingChannel | None = None
        self._generation = 0
        self._missing = False
        self._sparing = Sparing()

    # From any thread.

    @property
    def window(self) -> int:
        """How many deliveries of one queue may be unsettled just now."""
        return self._admission.window

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        """Reject some tags, ack the others; does nothing once their channel is gone."""
        self._loop.call(partial(self._settle, generation, rejects, acks, ack_up_to))

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Allow more deliveries of a queue, beside its unsettled ones."""
        self._loop.call(partial(self._renew_prefetch, generation, queue))

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled`, at once if the loop does not run."""
        if not self._loop.call(self._cancel):
            self._cancel()

    def resubscribe(self) -> None:
        """Consume again, on a new channel."""
        self._loop.call(self._resubscribe)

    def close(self) -> None:
        """Close the channel and forget the subscription."""
        if not self._loop.call(self.finish):
            self.finish()

    # On the loop's thread: called by the connection.

    def connected(self, connection: ReadingConnection) -> None:
        """Open a channel on a new connection, if deliveries are wanted."""
        self._connection = connection
        self._reopen()

    def disconnected(self, reason: str) -> None:
        """Record that the connection is gone; the channel's own callback may have come before."""
        self._connection = None
        self._lose(reason)

    @property
    def unanswered(self) -> Iterable[str]:
        """The queues that were asked to be consumed and have not answered."""
        return () if self._channel is None else self._channel.unanswered

    def tell_silent(self) -> None:
        """Tell the sink which queues do not answer."""
        queues = tuple(self.unanswered)
        if queues and self.wanted:
            self._sink.silent(queues)

    def leave(self, reason: str) -> None:
        """Give up the channel, to go on with another connection."""
        channel = self._channel
        self._connection = None
        self._lose(reason)
        if channel is not None:
            channel.close_when_settled()

    # Called by the channel.

    def asked(self) -> None:
        """See `Owner.asked`."""
        self.asked_at = time.monotonic()

    def answered(self) -> None:
        """See `Owner.answered`."""
        self.answered_at = time.monotonic()

    def finish(self) -> None:
        """See `Owner.finish`; the subscription is forgotten."""
        self.wanted = False
        channel = self._leave_channel()
        self._forget(self)
        if channel is not None:
            channel.close_when_settled()

    def give_up(self, reason: str, *, missing: bool = False) -> None:
        """See `Owner.give_up`."""
        channel = self._channel
        self._lose(reason, missing=missing)
        if channel is not None:
            channel.close()

    def begin_again(self, reason: str) -> None:
        """See `Owner.begin_again`."""
        self.give_up(reason)
        self._reopen()

    def closed(self, error: Exception) -> None:
        """See `Owner.closed`: another channel is opened, unless a queue does not exist."""
        self._lose(describe(error), missing=is_not_found(error))
        connection = self._connection
        if (
            isinstance(error, ChannelClosed)
            and self.wanted
            and not self._missing
            and connection is not None
            and connection.is_open
        ):
            connection.ioloop.call_later(REOPEN_AFTER, self._reopen)

    def too_large(self, in_hand: int) -> None:
        """See `Owner.too_large`."""
        queue = self._queues[0].name
        left_out = self._sparing.left_out(queue)
        if left_out is not None:
            log.info(
                "broker.deliveries_too_large",
                queue=queue,
                bytes_in_hand=in_hand,
                window=self._admission.window,
                left_out=left_out,
            )

    # The requests, on the loop's thread.

    def _settle(
        self, generation: int, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        channel = self._channel
        if channel is not None and channel.generation == generation and channel.is_open:
            channel.settle(rejects, acks, ack_up_to)

    def _renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        if self._channel is not None and self._channel.generation == generation:
            self._channel.renew_prefetch(queue)

    def _cancel(self) -> None:
        self.wanted = False
        if self._channel is not None and self._channel.is_open:
            self._channel.cancel()
        else:
            self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self.wanted = True
        if self._channel is not None:
            # When the old channel closes, its deliveries return to their queues.
            self._channel.cancelling = False
        self.give_up("consuming begins again")
        self._open()

    def _reopen(self) -> None:
        if self.wanted and not self._missing:
            self._open()

    def _open(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_open or self._channel is not None:
            return
        self._generation += 1
        self._admission.begin()
        self._channel = ConsumingChannel(
            self,
            connection,
            self._generation,
            queues=self._queues,
            admission=self._admission,
            sink=self._sink,
        )

    def _lose(self, reason: str, *, missing: bool = False) -> None:
        self._missing = missing
        channel = self._leave_channel()
        if channel is None:
            return
        self._sink.lost(channel.generation, reason, missing=missing)
        if channel.cancelling:
            self._sink.cancelled(channel.generation)

    def _leave_channel(self) -> ConsumingChannel | None:
        """Detach from the channel, if there is one, and return it."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.let_go()
            self._generation += 1
            self._admission.begin()
        return channel
