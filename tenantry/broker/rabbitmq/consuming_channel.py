"""One channel of a tenant's subscription, from its opening to its end.

Deliveries arrive on it in batches. They are settled on it, or come again on the next channel.
Everything here runs on the loop's thread of the consuming connections, which does frames, batching
and acks, and nothing else; the work on a delivery is done behind the sink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import structlog
from pika import spec
from pika.channel import Channel
from pika.exceptions import ChannelWrongStateError

from tenantry import failpoints
from tenantry.broker.budget import Admission
from tenantry.broker.port import Delivery, DeliverySink, QueueSpec
from tenantry.broker.rabbitmq.connection import acks_settle_in, passed_by
from tenantry.broker.rabbitmq.pika_internals import close_with_consumers
from tenantry.broker.rabbitmq.reading import ReadingConnection, Receiver

log = structlog.get_logger(__name__)

ANSWER_WITHIN: Final = 1.0
"""Seconds that queues may take to answer on a channel that is being cancelled."""

RESUME_AFTER: Final = 0.05
"""Seconds between checks whether there is room again for the deliveries that did not fit."""


class Owner(Protocol):
    """The subscription that owns the channel, and decides what becomes of it."""

    @property
    def wanted(self) -> bool:
        """Whether deliveries are wanted."""

    def asked(self) -> None:
        """Record that the channel has just asked to consume its queues."""

    def answered(self) -> None:
        """Record that one of these queues has answered."""

    def finish(self) -> None:
        """Close the channel for good."""

    def give_up(self, reason: str, *, missing: bool = False) -> None:
        """Close the channel; its unsettled deliveries come again."""

    def begin_again(self, reason: str) -> None:
        """Give the channel up, and go on with another."""

    def closed(self, error: Exception) -> None:
        """Record that the broker has closed the channel."""

    def too_large(self, in_hand: int) -> None:
        """Record that deliveries did not fit, with `in_hand` bytes unsettled."""


class ConsumingChannel:
    """A channel that consumes a tenant's queues, number `generation` of its subscription.

    An ordered queue has one consumer per channel, which ends with the channel. If another consumer
    took its place on the channel, the first one's unsettled messages would come after those that
    follow them. When the channel closes, all of them return to the queue, and only then the next
    consumer begins: RabbitMQ delivers such a queue's messages to one consumer at a time.
    """

    def __init__(
        self,
        owner: Owner,
        connection: ReadingConnection,
        generation: int,
        *,
        queues: Sequence[QueueSpec],
        admission: Admission,
        sink: DeliverySink,
    ) -> None:
        self.generation = generation
        self.unanswered: set[str] = set()
        """The queues that were asked to be consumed and have not answered."""
        self.cancelling = False
        """Whether deliveries are to stop, and the sink waits for `cancelled`."""
        self.admit = admission.admit
        self._owner = owner
        self._connection = connection
        self._queues = queues
        self._in_order = frozenset(place for place, queue in enumerate(queues) if queue.ordered)
        self._admission = admission
        self._sink = sink
        self._buffer: list[Delivery] = []
        self._take = _taker(self._buffer, self._flush_soon)
        self._tags: list[str] = []
        self._uncancelled: set[str] = set()
        self._paused: set[int] = set()
        self._renewing: set[int] = set()
        self._renewals = 0
        self._settled_at = 0.0
        self._stopped = False
        """Whether the channel was cancelled: later deliveries are dropped."""
        self._gone = False
        self._channel: Channel = connection.channel(on_open_callback=self._opened)

    @property
    def is_open(self) -> bool:
        """Whether the channel is open."""
        return bool(self._channel.is_open)

    # Its beginning.

    def _opened(self, channel: Channel) -> None:
        if self._gone:
            return  # Given up while it opened: the next channel would settle what came on it.
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(self._cancelled_by_broker)
        if not self._owner.wanted:
            self._owner.finish()
            return
        channel.basic_qos(prefetch_count=self._admission.window)
        self.unanswered = {queue.name for queue in self._queues}
        self._owner.asked()
        for place, queue in enumerate(self._queues):
            self._tags.append(str(place))
            self._receive(place)
            channel.basic_consume(
                queue.name,
                passed_by,
                consumer_tag=self._tags[place],
                callback=partial(self._consuming, queue.name),
            )

    def _receive(self, place: int) -> None:
        queue = self._queues[place]
        receiver: Receiver = (queue.topic, queue.partition, self._take, self)
        self._connection.receive(self._channel.channel_number, self._tags[place], receiver)

    def _consuming(self, queue: str, _frame: object) -> None:
        self.unanswered.discard(queue)
        self._owner.answered()
        if self.unanswered or self._gone:
            return
        if self.cancelling:
            self._cancel_all()
        else:
            self._sink.consuming(self.generation)

    # Deliveries.

    def _flush_soon(self) -> None:
        self._connection.ioloop.add_callback(self._flush)

    def _flush(self) -> None:
        if self._gone or not self._buffer:
            return
        # `take` keeps a reference to the list, so it is emptied, not replaced.
        batch = self._buffer.copy()
        self._buffer.clear()
        if self._stopped:
            return
        self._sink.deliveries(self.generation, batch)
        if self._admission.grows():
            for queue in self._queues:
                self.renew_prefetch(queue)

    def settle(self, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None) -> None:
        """Reject `rejects`, ack `acks`, then ack all others up to a tag."""
        channel, number = self._channel, self._channel.channel_number
        failpoints.reach("before_ack")
        for tag in rejects:
            channel.basic_reject(tag, requeue=False)
        if acks:
            self._connection.ack_each(number, acks)
        if ack_up_to is not None:
            if self._admission.shed and self._admission.shed[0] <= ack_up_to:
                # Otherwise the multiple ack would include dropped messages.
                self._give_back()
            channel.basic_ack(ack_up_to, multiple=True)
        self._admission.account.settle(rejects, acks, ack_up_to)
        failpoints.reach("after_ack")
        self._settled_at = self._connection.settled_at = time.monotonic()

    def renew_prefetch(self, queue: QueueSpec) -> None:
        """Replace a queue's consumer by a new one, for which the broker counts the prefetch anew.

        The first one's deliveries stay with the channel. The new consumer begins once the first has
        ended, so that messages come in their order.
        """
        place = self._queues.index(queue)
        if place in self._renewing or place in self._in_order:
            return
        if self.is_open and self._owner.wanted:
            self._renewing.add(place)
            self._cancel_consumer(self._tags[place], partial(self._consume_again, place))

    def _consume_again(self, place: int, _frame: object) -> None:
        if self._gone:
            return
        if self._admission.shedding:
            self._pause(place, None)
            return
        self._renewing.discard(place)
        if self.cancelling:
            self._cancel_ok(self._tags[place], None)
            return
        self._renewals += 1
        self._tags[place] = f"{place}.{self._renewals}"
        self._receive(place)
        self._channel.basic_qos(prefetch_count=self._admission.window)
        self._channel.basic_consume(
            self._queues[place].name, passed_by, consumer_tag=self._tags[place]
        )

    # Deliveries that do not fit.

    def dropped(self, tag: int) -> None:
        """Stop deliveries after a dropped one; those dropped go back when no more can come."""
        shed = self._admission.shed
        shed.append(tag)
        if len(self._paused) == len(self._queues):
            # A delivery was still on its way here when the last cancel was answered.
            self._give_back()
        elif len(shed) > 1 or not self._owner.wanted:
            return
        elif self._in_order:
            self._connection.ioloop.add_callback(self._begin_smaller)
        else:
            for place, consumer_tag in enumerate(self._tags):
                if place not in self._renewing:
                    self._renewing.add(place)
                    self._cancel_consumer(consumer_tag, partial(self._pause, place))

    def _begin_smaller(self) -> None:
        """Begin another channel with fewer messages in hand, so that all come in order.

        Not before there is room again, and the settlements that made it are through: otherwise the
        same messages would come again and again without being worked on.
        """
        if self._gone or not self._owner.wanted:
            return
        room = self._admission.has_room()
        delay = acks_settle_in(self._settled_at) if room else RESUME_AFTER
        if delay > 0:
            self._connection.ioloop.call_later(delay, self._begin_smaller)
            return
        in_hand = self._admission.account.in_hand
        self._admission.resume()
        self._owner.too_large(in_hand)
        self._owner.begin_again("messages are larger than there is room for so many")

    def _pause(self, place: int, _frame: object) -> None:
        """Record that a queue delivers nothing more until there is room."""
        if self._gone:
            return
        self._paused.add(place)
        if self.cancelling:
            self._cancel_ok(self._tags[place], None)
        elif len(self._paused) == len(self._queues):
            self._give_back()
            self._owner.too_large(self._admission.account.in_hand)
            self._resume_soon()

    def _give_back(self) -> None:
        shed, self._admission.shed = self._admission.shed, []
        if self._in_order:
            return  # They come again on the next channel: given back here, they would fall behind.
        if shed and self.is_open:
            self._connection.give_back(self._channel.channel_number, shed)

    def _resume_soon(self) -> None:
        if self._gone or not self._paused:
            return
        if not self._admission.has_room():
            self._connection.ioloop.call_later(RESUME_AFTER, self._resume_soon)
        elif self.is_open and self._owner.wanted:
            self._give_back()
            self._admission.resume()
            paused, self._paused = sorted(self._paused), set()
            for place in paused:
                self._consume_again(place, None)

    # Its end.

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled` once no more can come."""
        if self.cancelling:
            return
        self.cancelling = True
        self._uncancelled = {
            tag
            for place, tag in enumerate(self._tags)
            if place not in self._paused and place not in self._in_order
        }
        if not self.unanswered:
            self._cancel_all()
        else:
            # Most likely they are about to answer, and the others' deliveries can be finished.
            self._connection.ioloop.call_later(ANSWER_WITHIN, self._wait_no_longer)

    def _cancel_all(self) -> None:
        for place, tag in enumerate(self._tags):
            # A consumer that is being replaced has been cancelled already, and is not.
            if tag in self._uncancelled and place not in self._renewing:
                self._cancel_consumer(tag, partial(self._cancel_ok, tag))
        if not self._uncancelled:
            self._cancelled()

    def _cancel_consumer(self, tag: str, answered: Callable[[object], None]) -> None:
        """Cancel one consumer; `answered` is called with the broker's answer to this cancel.

        The callback of pika's `basic_cancel` is called at the first answer to any cancel on the
        channel, when others have not been sent yet.
        """
        number, answer = self._channel.channel_number, spec.Basic.CancelOk
        self._channel.callbacks.add(number, answer, answered, arguments={"consumer_tag": tag})
        self._channel.basic_cancel(tag, callback=_wait_for_answer)

    def _wait_no_longer(self) -> None:
        """Give up a channel that a silent queue blocks for all others."""
        if not self._gone and self.cancelling and self.unanswered:
            self._owner.give_up("a queue does not answer, and is not wanted any more")

    def _cancel_ok(self, tag: str, _frame: object) -> None:
        self._uncancelled.discard(tag)
        if not self._uncancelled and not self._gone:
            self._cancelled()

    def _cancelled(self) -> None:
        self._flush()
        self._give_back()
        self.cancelling = False
        if self._in_order:
            self._stopped = True
            self._forget()
        self._sink.cancelled(self.generation)

    def _cancelled_by_broker(self, _frame: object) -> None:
        """Handle a cancel that the broker sent: a queue was deleted or moved."""
        if not self._gone:
            self._owner.give_up(
                "the broker cancelled a consumer: its queue was deleted", missing=True
            )

    def _closed(self, _channel: Channel, error: Exception) -> None:
        if not self._gone:
            self._owner.closed(error)

    def let_go(self) -> None:
        """Drop everything that still arrives: the channel is its owner's no more."""
        self._gone = True
        self._forget()

    def close_when_settled(self) -> None:
        """Close the channel once the broker has processed its latest settlements."""
        delay = acks_settle_in(self._settled_at)
        if delay > 0 and self._connection.is_open:
            self._connection.ioloop.call_later(delay, self.close)
        else:
            self.close()

    def close(self) -> None:
        """Close the channel; harmless if it is closed."""
        try:
            if self._in_order:
                close_with_consumers(self._channel)
            else:
                self._channel.close()
        except ChannelWrongStateError:
            log.debug("broker.channel_was_closed")

    def _forget(self) -> None:
        self._connection.forget(self._channel.channel_number)


def _taker(buffer: list[Delivery], flush_soon: Callable[[], object]) -> Callable[[Delivery], None]:
    """Make the function that takes a channel's deliveries one by one: the hottest code here."""

    def take(delivery: Delivery) -> None:
        if not buffer:
            # All deliveries of one read from the socket become one batch.
            flush_soon()
        buffer.append(delivery)

    return take


def _wait_for_answer(_frame: object) -> None:
    """Do nothing: with a callback, pika asks the broker to answer a cancel."""
