"""One tenant's channel on RabbitMQ: what comes on it, and what is said of that.

Everything happens on the thread of the consuming connections' loop, which does frames, batching and
acks, and nothing else; what is done with a delivery happens behind the sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from pika.exceptions import ChannelClosed, ChannelWrongStateError

from tenantry import failpoints
from tenantry.broker.budget import Admission, Budget
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.broker.rabbitmq.connection import (
    acks_settle_in,
    describe,
    is_not_found,
    passed_by,
)
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.pika_internals import close_with_consumers
from tenantry.broker.rabbitmq.reading import ReadingConnection, Receiver

if TYPE_CHECKING:
    from pika.channel import Channel

log = structlog.get_logger(__name__)

REOPEN_AFTER: Final = 1.0
"""Seconds before a channel that the broker closed is opened again."""

ANSWER_WITHIN: Final = 1.0
"""Seconds that queues are given to answer on a channel whose deliveries are to stop."""

RESUME_AFTER: Final = 0.05
"""Seconds between looks at whether there is room again for what did not fit."""


class RabbitSubscription:
    """One tenant's channel. Its fields belong to the loop's thread; the public calls go there.

    A queue in order has one consumer on a channel, and that ends with the channel: once another
    has taken its place, what the first one has in hand would come after what follows it. With the
    channel all of it is in the queue again, and only then the next consumer begins: RabbitMQ gives
    such a queue's messages to one consumer at a time.
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
        self.asked_at = 0.0
        """When it last asked its queues to be consumed."""
        self.answered_at = 0.0
        self._unanswered: set[str] = set()
        self._settled_at = 0.0
        self._loop = loop
        self._queues = tuple(queues)
        self._admission = Admission(budget, prefetch=prefetch, queues=len(self._queues))
        self.admit = self._admission.admit
        self._paused: set[int] = set()
        self._sink = sink
        self._forget = forget
        self._connection: ReadingConnection | None = None
        self._channel: Channel | None = None
        self._generation = 0
        self._buffer: list[Delivery] = []
        self._tags: list[str] = []
        self._take: Callable[[Delivery], None] = _nobody_takes
        self._uncancelled: set[str] = set()
        self._renewing: set[int] = set()
        self._renewals = 0
        self._wanted = True
        self._cancelling = False
        self._missing = False
        self._in_order = frozenset(
            place for place, queue in enumerate(self._queues) if queue.ordered
        )
        self._done = False
        """Whether it was cancelled, and what still comes is dropped."""

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
        """Reject some tags, ack the rest; nothing, once the channel they came on is gone."""
        self._loop.call(partial(self._settle, generation, rejects, acks, ack_up_to))

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Let more deliveries of a queue come, beside those that are unsettled."""
        self._loop.call(partial(self._renew_prefetch, generation, queue))

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled`, at once where nothing is connected."""
        if not self._loop.call(self._cancel):
            self._cancel()

    def resubscribe(self) -> None:
        """Consume again, on a new channel."""
        self._loop.call(self._resubscribe)

    def close(self) -> None:
        """Close the channel and forget the subscription."""
        if not self._loop.call(self._close):
            self._close()

    # On the loop's thread.

    def connected(self, connection: ReadingConnection) -> None:
        """Open a channel on a new connection, if deliveries are wanted."""
        self._connection = connection
        self._reopen()

    def disconnected(self, reason: str) -> None:
        """Note that the connection is gone; the channel's own callback may have come before."""
        self._connection = None
        self._lose(reason)

    @property
    def unanswered(self) -> Iterable[str]:
        """The queues that were asked to be consumed and have not answered."""
        return self._unanswered if self._channel is not None else ()

    def tell_silent(self) -> None:
        """Tell the sink which queues do not answer."""
        queues = tuple(self.unanswered)
        if queues and self._wanted:
            self._sink.silent(queues)

    def leave(self, reason: str) -> None:
        """Give up the channel, to go on with another connection."""
        connection, channel = self._connection, self._channel
        self._connection = None
        if connection is None or channel is None:
            return
        connection.forget(channel.channel_number)
        self._lose(reason)
        # What was settled until now shall still be heard.
        connection.ioloop.call_later(
            acks_settle_in(self._settled_at), partial(self._close_channel, channel)
        )

    def _open(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_open or self._channel is not None:
            return
        self._generation += 1
        self._buffer = []
        self._tags = []
        self._renewing = set()
        self._paused = set()
        self._done = False
        self._admission.begin()
        opened = partial(self._opened, connection, self._generation)
        self._channel = connection.channel(on_open_callback=opened)

    def _opened(self, connection: ReadingConnection, generation: int, channel: Channel) -> None:
        if generation != self._generation:
            return  # It was given up while it opened: what came on it, another would settle.
        channel.add_on_close_callback(partial(self._closed, generation))
        channel.add_on_cancel_callback(partial(self._cancelled_by_broker, generation))
        if not self._wanted:
            self._close()
            return
        channel.basic_qos(prefetch_count=self._admission.window)
        waiting = self._unanswered = {queue.name for queue in self._queues}
        self.asked_at = time.monotonic()
        flush = partial(self._flush, generation)
        take = self._take = _taker(self._buffer, partial(connection.ioloop.add_callback, flush))
        for number, queue in enumerate(self._queues):
            tag = str(number)
            receiver: Receiver = (queue.topic, queue.partition, take, self)
            connection.receive(channel.channel_number, tag, receiver)
            channel.basic_consume(
                queue.name,
                passed_by,
                consumer_tag=tag,
                callback=partial(self._consuming, generation, queue.name, waiting),
            )
            self._tags.append(tag)

    def _consuming(self, generation: int, queue: str, waiting: set[str], _frame: object) -> None:
        waiting.discard(queue)
        self.answered_at = time.monotonic()
        if waiting or generation != self._generation:
            return
        if self._cancelling:
            self._cancel_all()
        else:
            self._sink.consuming(generation)

    def _flush(self, generation: int) -> None:
        if generation == self._generation and self._buffer:
            # The list itself is known to `take`: it is emptied, not replaced.
            batch = self._buffer.copy()
            self._buffer.clear()
            if self._done:
                return
            self._sink.deliveries(generation, batch)
            if self._admission.grows():
                for queue in self._queues:
                    self._renew_prefetch(generation, queue)

    # Bytes.

    def dropped(self, tag: int) -> None:
        """Stop deliveries once one was dropped; they are given back when no more can come."""
        admission = self._admission
        admission.shed.append(tag)
        if len(self._paused) == len(self._queues):
            # RabbitMQ may confirm a cancel before it has sent all that was on its way.
            self._give_back()
            return
        channel = self._channel
        if len(admission.shed) > 1 or channel is None or not self._wanted:
            return
        if self._in_order and self._connection is not None:
            begin_smaller = partial(self._begin_smaller, self._generation)
            self._connection.ioloop.add_callback(begin_smaller)
            return
        for place, consumer_tag in enumerate(self._tags):
            if place not in self._renewing:
                self._renewing.add(place)
                stopped = partial(self._stopped, self._generation, place)
                channel.basic_cancel(consumer_tag, callback=stopped)

    def _begin_smaller(self, generation: int) -> None:
        """Take another channel, on which fewer messages are in hand: so all comes in order.

        Not before there is room again, and what has made it is settled: or else the same would come
        again and again, and nothing be done with it.
        """
        connection = self._connection
        if generation != self._generation or connection is None or not self._wanted:
            return
        room = self._admission.has_room()
        delay = acks_settle_in(self._settled_at) if room else RESUME_AFTER
        if delay > 0:
            connection.ioloop.call_later(delay, partial(self._begin_smaller, generation))
            return
        in_hand = self._admission.account.in_hand
        self._admission.resume()
        log.info(
            "broker.deliveries_too_large",
            queue=self._queues[0].name,
            bytes_in_hand=in_hand,
            window=self._admission.window,
        )
        self._give_up_channel("messages are larger than there is room for so many")
        self._reopen()

    def _stopped(self, generation: int, place: int, _frame: object) -> None:
        """Note that a queue brings nothing more until there is room."""
        if generation != self._generation or self._channel is None:
            return
        self._paused.add(place)
        if self._cancelling:
            self._cancel_ok(self._tags[place], None)
            return
        if len(self._paused) < len(self._queues):
            return
        self._give_back()
        log.info(
            "broker.deliveries_too_large",
            queue=self._queues[0].name,
            bytes_in_hand=self._admission.account.in_hand,
            window=self._admission.window,
        )
        self._resume_soon(generation)

    def _give_back(self) -> None:
        channel, connection = self._channel, self._connection
        shed, self._admission.shed = self._admission.shed, []
        if self._in_order:
            return  # They come again with the channel: alone, they would come behind others.
        if shed and connection is not None and channel is not None and channel.is_open:
            connection.give_back(channel.channel_number, shed)

    def _resume_soon(self, generation: int) -> None:
        connection = self._connection
        if generation != self._generation or connection is None or not self._paused:
            return
        if not self._admission.has_room():
            connection.ioloop.call_later(RESUME_AFTER, partial(self._resume_soon, generation))
            return
        channel = self._channel
        if channel is None or not channel.is_open or not self._wanted:
            return
        self._give_back()
        self._admission.resume()
        paused, self._paused = sorted(self._paused), set()
        for place in paused:
            self._consume_again(generation, channel, place, None)

    def _renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Put another consumer in the place of a queue's: the broker counts for each anew.

        What the first one has brought stays with the channel. The other begins once the first
        has ended, so that messages come in their order.
        """
        channel = self._channel
        place = self._queues.index(queue)
        if (
            generation != self._generation
            or channel is None
            or not channel.is_open
            or not self._wanted
            or place in self._renewing
            or place in self._in_order
        ):
            return
        self._renewing.add(place)
        consume = partial(self._consume_again, generation, channel, place)
        channel.basic_cancel(self._tags[place], callback=consume)

    def _consume_again(self, generation: int, channel: Channel, place: int, _frame: object) -> None:
        connection = self._connection
        if generation != self._generation or connection is None:
            return
        if self._admission.shedding:
            self._stopped(generation, place, None)
            return
        self._renewing.discard(place)
        if self._cancelling:
            self._cancel_ok(self._tags[place], None)
            return
        queue = self._queues[place]
        self._renewals += 1
        tag = self._tags[place] = f"{place}.{self._renewals}"
        receiver: Receiver = (queue.topic, queue.partition, self._take, self)
        connection.receive(channel.channel_number, tag, receiver)
        channel.basic_qos(prefetch_count=self._admission.window)
        channel.basic_consume(queue.name, passed_by, consumer_tag=tag)

    def _settle(
        self,
        generation: int,
        rejects: Sequence[int],
        acks: Sequence[int],
        ack_up_to: int | None,
    ) -> None:
        channel = self._channel
        if generation != self._generation or channel is None or not channel.is_open:
            return
        failpoints.reach("before_ack")
        for tag in rejects:
            channel.basic_reject(tag, requeue=False)
        if acks and self._connection is not None:
            self._connection.ack_each(channel.channel_number, acks)
        if ack_up_to is not None:
            if self._admission.shed and self._admission.shed[0] <= ack_up_to:
                # Or else the ack would be for messages that were dropped.
                self._give_back()
            channel.basic_ack(ack_up_to, multiple=True)
        self._admission.account.settle(rejects, acks, ack_up_to)
        failpoints.reach("after_ack")
        self._settled_at = time.monotonic()
        if self._connection is not None:
            self._connection.settled_at = self._settled_at

    def _cancel(self) -> None:
        self._wanted = False
        channel = self._channel
        if channel is None or not channel.is_open:
            self._sink.cancelled(self._generation)
            return
        if self._cancelling:
            return
        self._cancelling = True
        self._uncancelled = {
            tag
            for place, tag in enumerate(self._tags)
            if place not in self._paused and place not in self._in_order
        }
        if not self._unanswered:
            self._cancel_all()
        elif self._connection is not None:
            # Most likely they are about to answer, and what the others bring is finished in order.
            give_up = partial(self._give_up, self._generation)
            self._connection.ioloop.call_later(ANSWER_WITHIN, give_up)

    def _cancel_all(self) -> None:
        channel = self._channel
        for place, tag in enumerate(self._tags):
            # A consumer that is being replaced has been cancelled already, and is not.
            if channel is not None and tag in self._uncancelled and place not in self._renewing:
                channel.basic_cancel(tag, callback=partial(self._cancel_ok, tag))
        if not self._uncancelled:
            self._cancelled()

    def _give_up(self, generation: int) -> None:
        """Let go of a channel on which a queue holds up every word: it does not answer."""
        if generation == self._generation and self._cancelling and self._unanswered:
            self._give_up_channel("a queue does not answer, and is not wanted any more")

    def _cancel_ok(self, tag: str, _frame: object) -> None:
        self._uncancelled.discard(tag)
        if not self._uncancelled:
            self._cancelled()

    def _cancelled(self) -> None:
        self._flush(self._generation)
        self._give_back()
        self._cancelling = False
        if self._in_order and self._channel is not None:
            self._done = True
            self._forget_channel(self._channel)
        self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self._wanted = True
        self._missing = False
        self._cancelling = False
        # The deliveries of the old channel go back to their queues with it.
        self._give_up_channel("consuming begins again")
        self._open()

    def _close(self) -> None:
        self._wanted = False
        channel, self._channel = self._channel, None
        self._generation += 1
        self._admission.begin()
        self._forget(self)
        if channel is None:
            return
        self._forget_channel(channel)
        connection = self._connection
        delay = acks_settle_in(self._settled_at)
        if connection is not None and connection.is_open and delay > 0:
            connection.ioloop.call_later(delay, partial(self._end, channel))
        else:
            self._end(channel)

    def _cancelled_by_broker(self, generation: int, _frame: object) -> None:
        """Handle a cancel that the broker sent: a queue was deleted or moved."""
        if generation != self._generation:
            return
        self._give_up_channel(
            "the broker cancelled a consumer: its queue was deleted", missing=True
        )

    def _closed(self, generation: int, _channel: Channel, error: Exception) -> None:
        if generation != self._generation or self._channel is None:
            return
        missing = is_not_found(error)
        self._lose(describe(error), missing=missing)
        connection = self._connection
        if (
            self._wanted
            and not missing
            and isinstance(error, ChannelClosed)
            and connection is not None
            and connection.is_open
        ):
            connection.ioloop.call_later(REOPEN_AFTER, self._reopen)

    def _reopen(self) -> None:
        if self._wanted and not self._missing:
            self._open()

    def _end(self, channel: Channel) -> None:
        self._forget_channel(channel)
        self._close_channel(channel)

    def _close_channel(self, channel: Channel) -> None:
        """Close a channel, which may be closed by now."""
        try:
            if self._in_order:
                close_with_consumers(channel)
            else:
                channel.close()
        except ChannelWrongStateError:
            log.debug("broker.channel_was_closed")

    def _forget_channel(self, channel: Channel) -> None:
        """See that what still comes on a channel that is gone is dropped."""
        if self._connection is not None:
            self._connection.forget(channel.channel_number)

    def _give_up_channel(self, reason: str, *, missing: bool = False) -> None:
        channel = self._channel
        self._lose(reason, missing=missing)
        if channel is not None:
            self._end(channel)

    def _lose(self, reason: str, *, missing: bool = False) -> None:
        self._missing = missing
        if self._channel is None:
            return
        self._forget_channel(self._channel)
        self._channel = None
        self._admission.begin()
        self._buffer = []
        generation = self._generation
        self._generation += 1
        self._sink.lost(generation, reason, missing=missing)
        if self._cancelling:
            self._cancelling = False
            self._sink.cancelled(generation)


def _nobody_takes(_delivery: Delivery) -> None:
    raise AssertionError("a delivery came before its channel")


def _taker(buffer: list[Delivery], flush_soon: Callable[[], object]) -> Callable[[Delivery], None]:
    """Make what takes a channel's deliveries, one by one: the hottest code there is."""

    def take(delivery: Delivery) -> None:
        if not buffer:
            # Everything one read of the socket brings becomes one batch.
            flush_soon()
        buffer.append(delivery)

    return take
