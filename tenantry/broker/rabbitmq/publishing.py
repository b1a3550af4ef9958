"""Publishing to RabbitMQ with confirms: one connection and one thread for all callers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import (
    BrokerBlockedError,
    BrokerError,
    BrokerUnavailableError,
    MessagesRefusedError,
    Outgoing,
    UnroutableError,
)
from tenantry.broker.rabbitmq.connection import RecoveringConnection, describe
from tenantry.broker.rabbitmq.loop import IoLoop
from tenantry.broker.rabbitmq.pika_internals import FencedConnection
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.rabbitmq.unconfirmed import Unconfirmed
from tenantry.broker.rabbitmq.wire import UnencodableError, encode
from tenantry.loops import Heartbeat

log = structlog.get_logger(__name__)

MAX_BURST: Final = 250
"""Messages sent before the loop checks its socket again."""

REOPEN_AFTER: Final = 0.5
"""Seconds before a channel that the broker closed is opened again."""

BLOCKED_PATIENCE: Final = 1.0
"""Seconds a caller waits for a broker that accepts no messages now."""

IN_A_ROW: Final = 20
"""Messages of one exchange that are sent before it is another's turn."""

LARGE: Final = 16 * 1024
"""A message counts as one, and as one more for each so many bytes of its body."""

_NOT_FOUND: Final = 404


class Batch:
    """The messages of one call, and whether all are confirmed. `done` is set once, for good.

    The caller waits for `done`, or is told by `on_done`, and may set `abandoned`; the rest belongs
    to the loop's thread.
    """

    __slots__ = ("_left", "_on_done", "_unsent", "abandoned", "done", "error", "exchange")

    def __init__(
        self, messages: Sequence[Outgoing], on_done: Callable[[], object] = lambda: None
    ) -> None:
        self.exchange = messages[0].exchange
        """The exchange whose turns it uses: all messages of a call go to one exchange."""
        self._unsent = deque(messages)
        self._left = len(messages)
        self._on_done = on_done
        self.done = threading.Event()
        self.error: BrokerError | None = None
        self.abandoned = False

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.abandoned and not self.done.is_set()

    def next_unsent(self) -> Outgoing | None:
        """Take the next message to send; None if there is none, or the caller waits no more."""
        if not self.wanted or not self._unsent:
            return None
        return self._unsent.popleft()

    def send_again(self, messages: Sequence[Outgoing]) -> None:
        """Put back messages that were sent and lost, before those not sent yet."""
        self._unsent.extendleft(reversed(messages))

    def answered(self, error: BrokerError | None) -> None:
        """Count a message as confirmed by the broker; with an error, end the call with it."""
        if error is not None:
            self.fail(error)
            return
        self._left -= 1
        if self._left == 0:
            self._end()

    def fail(self, error: BrokerError) -> None:
        """End the call with an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self._end()

    def _end(self) -> None:
        self.done.set()
        self._on_done()


class Waiting:
    """Calls with messages to send. Exchanges take turns, and so do tenants.

    However much one exchange's callers publish, another's message goes out after a few of theirs.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[str, deque[Batch]] = OrderedDict()
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[Batch]:
        for calls in self._calls.values():
            yield from calls

    def add(self, batch: Batch) -> None:
        """Queue a call behind those before it to the same exchange."""
        self._calls.setdefault(batch.exchange, deque()).append(batch)

    def put_back(self, batch: Batch, messages: Sequence[Outgoing]) -> None:
        """Queue a call's lost messages before all others to its exchange, if it still waits."""
        if not batch.wanted:
            return
        batch.send_again(messages)
        calls = self._calls.setdefault(batch.exchange, deque())
        if batch not in calls:
            calls.appendleft(batch)

    def next(self, is_full: Callable[[str], bool]) -> tuple[Batch, Outgoing] | None:
        """Take the next message to send; none to an exchange that is full."""
        # One more round for the exchange that has just had its turn: it may be the only one.
        for _ in range(len(self._calls) + 1):
            if not self._calls:
                break
            exchange, calls = next(iter(self._calls.items()))
            if self._in_a_row < IN_A_ROW and not is_full(exchange):
                while calls:
                    batch = calls[0]
                    if (message := batch.next_unsent()) is not None:
                        self._in_a_row += 1 + len(message.body) // LARGE
                        return batch, message
                    calls.popleft()
            self._in_a_row = 0
            if calls:
                self._calls.move_to_end(exchange)
            else:
                del self._calls[exchange]
        return None

    def forget_abandoned(self) -> None:
        """Drop the calls whose callers do not wait any more."""
        for exchange, calls in list(self._calls.items()):
            left = deque(batch for batch in calls if not batch.abandoned)
            if left:
                self._calls[exchange] = left
            else:
                del self._calls[exchange]

    def clear(self) -> None:
        """Drop all calls."""
        self._calls.clear()


class RabbitPublishing:
    """Publishes durable messages. The owner calls `run` and `stop`.

    Messages left unconfirmed by a broken connection are published again on the next one, with the
    same message ids, until the caller's timeout.
    """

    singly: Final = True

    def __init__(self, url: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS) -> None:
        self._loop = IoLoop()
        self._link = RecoveringConnection(
            self._loop,
            url,
            fence=fence,
            tls=tls,
            name="publishing",
            on_open=self._connected,
            on_closed=self._disconnected,
            kind=FencedConnection,
        )
        # Passed from callers to the loop's thread; everything below belongs to that thread.
        self._incoming: deque[Batch] = deque()
        self._stopped = threading.Event()
        self._waiting = Waiting()
        self._unconfirmed: Unconfirmed[Batch] = Unconfirmed()
        self._connection: FencedConnection | None = None
        self._channel: Channel | None = None
        self._ready = False
        self._blocked: str | None = None
        self._pumping = False

    @property
    def connected(self) -> bool:
        """Whether the broker is connected now."""
        return self._link.connected

    @property
    def heartbeat(self) -> Heartbeat:
        """The loop's sign of life."""
        return self._loop.heartbeat

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return self._link.reconnects

    def run(self) -> None:
        """Publish the callers' messages until `stop`; belongs on a thread of its own."""
        try:
            self._loop.run()
        finally:
            self._stopped.set()
            self._fail_everything(BrokerUnavailableError("publishing has been stopped"))

    def stop(self) -> None:
        """Close the connection and end `run`; calls still waiting for confirms fail."""
        self._stopped.set()
        self._loop.stop()

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        """Return once the broker has confirmed every message, in `timeout` seconds at most.

        Raises `UnroutableError`; `BrokerUnavailableError`, when some may have been taken; and
        `BrokerError` for a message that can't be sent. Callable from any thread.
        """
        if not messages:
            return
        batch = Batch(messages)
        timeout = min(timeout, self.begin(batch))
        if not batch.done.wait(timeout):
            raise self.give_up(batch, timeout)
        if batch.error is not None:
            raise batch.error

    def begin(self, batch: Batch) -> float:
        """Publish a batch; give the seconds that are worth waiting for its end.

        Raises `BrokerUnavailableError`.
        """
        self._incoming.append(batch)
        if self._stopped.is_set():
            raise BrokerUnavailableError("publishing has been stopped")
        self._loop.call(self._pump)
        # It may take long: better to say so than to keep all callers waiting.
        return math.inf if self._blocked is None else BLOCKED_PATIENCE

    def give_up(self, batch: Batch, timeout: float) -> BrokerUnavailableError:
        """Forget a batch that has not ended in time; give the reason."""
        batch.abandoned = True
        with suppress(ValueError, IndexError):
            # Unless the loop has taken the batch already: then it sees that it is abandoned.
            self._incoming.remove(batch)
        blocked = self._blocked
        if not self._link.connected:
            return BrokerUnavailableError(
                f"RabbitMQ can't be reached; the messages were not confirmed in {timeout:g} s"
            )
        if blocked is not None:
            return BrokerBlockedError(f"RabbitMQ takes no messages now: {blocked}")
        return BrokerUnavailableError(f"RabbitMQ did not confirm the messages in {timeout:g} s")

    # On the loop's thread.

    def _connected(self, connection: FencedConnection) -> None:
        self._connection = connection
        self._blocked = None
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open()

    def _disconnected(self, _error: object, _reason: str) -> None:
        self._connection = None
        self._blocked = None
        self._lose_channel()

    def _open(self) -> None:
        connection = self._connection
        if connection is not None and connection.is_open and self._channel is None:
            self._channel = connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(
            partial(self._on_answer, channel), callback=partial(self._confirming, channel)
        )

    def _confirming(self, channel: Channel, _frame: object) -> None:
        if channel is self._channel:
            self._ready = True
            self._pump()

    def _closed(self, channel: Channel, error: Exception) -> None:
        if channel is not self._channel:
            return
        if isinstance(error, ChannelClosedByBroker):
            self._blame(error)
        self._lose_channel()
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.ioloop.call_later(REOPEN_AFTER, self._open)

    def _blame(self, error: ChannelClosedByBroker) -> None:
        """Fail the batches that made the broker close the channel; the others are sent again."""
        if error.reply_code == _NOT_FOUND:
            for batch, exchange in self._unconfirmed.exchanges():
                if f"'{exchange}'" in error.reply_text:
                    batch.fail(UnroutableError(f"there is no stream {exchange!r}"))
            return
        log.warning("broker.publishing_refused", error=describe(error))
        for batch, _ in self._unconfirmed.exchanges():
            batch.fail(BrokerError(f"RabbitMQ refuses the messages: {error.reply_text}"))

    def _lose_channel(self) -> None:
        self._channel = None
        self._ready = False
        # Before the batches that wait already, and in the old order.
        for batch, messages in reversed(self._unconfirmed.lose_channel().items()):
            self._waiting.put_back(batch, messages)

    def _on_blocked(self, _connection: object, frame: Method[Any]) -> None:
        self._blocked = str(getattr(frame.method, "reason", "")) or "it is short of resources"
        log.warning("broker.blocked", reason=self._blocked)

    def _on_unblocked(self, _connection: object, _frame: object) -> None:
        self._blocked = None
        log.info("broker.unblocked")
        self._pump()

    def _on_return(
        self, _channel: Channel, method: Basic.Return, properties: BasicProperties, _body: bytes
    ) -> None:
        self._unconfirmed.returned(method.exchange, method.routing_key, properties.message_id)

    def _on_answer(self, channel: Channel, frame: Method[Any]) -> None:
        if channel is not self._channel:
            return
        answer = frame.method
        refusal: Callable[[], BrokerError] | None = None
        if isinstance(answer, Basic.Nack):
            refusal = partial(
                MessagesRefusedError, "RabbitMQ refused messages: a queue is full or failing"
            )
        for batch, error in self._unconfirmed.settle(
            answer.delivery_tag,
            multiple=answer.multiple,
            refusal=refusal,
            now=time.monotonic(),
        ):
            batch.answered(error)
        self._pump()

    def _pump(self) -> None:
        """Send the waiting messages that the window allows, then let the loop's other work run."""
        self._pumping = False
        while self._incoming:
            self._waiting.add(self._incoming.popleft())
        channel, connection = self._channel, self._connection
        if not self._ready or self._blocked is not None or channel is None or connection is None:
            self._waiting.forget_abandoned()
            return
        frames: list[bytes] = []
        unconfirmed, now = self._unconfirmed, time.monotonic()
        has_its_share = unconfirmed.has_its_share
        while unconfirmed.has_room and (turn := self._waiting.next(has_its_share)) is not None:
            batch, message = turn
            if frame := self._encode(connection, channel, batch, message):
                frames.append(frame)
                unconfirmed.sent(batch, message, now)
                if len(frames) >= MAX_BURST:
                    break
        if frames:
            # One write for all frames. Pika's `Channel.basic_publish` makes three writes per
            # message, and takes three times as long altogether.
            connection.send_frames(b"".join(frames))
        if len(frames) >= MAX_BURST and not self._pumping:
            self._pumping = True
            connection.ioloop.add_callback(self._pump)

    def _encode(
        self, connection: FencedConnection, channel: Channel, batch: Batch, message: Outgoing
    ) -> bytes | None:
        try:
            return encode(
                message,
                channel=channel.channel_number,
                frame_max=connection.params.frame_max,
                timestamp=int(time.time()),
            )
        except UnencodableError as error:
            batch.fail(BrokerError(f"a message can't be sent over AMQP: {error}"))
            return None

    def _fail_everything(self, error: BrokerError) -> None:
        for batch in (*self._unconfirmed.lose_channel(), *self._waiting, *self._incoming):
            batch.fail(error)
        self._waiting.clear()
        self._incoming.clear()


class RabbitLoopPublishing:
    """Publishes from an event loop (`tenantry.broker.port.LoopPublishing`), by the same thread."""

    def __init__(self, publishing: RabbitPublishing) -> None:
        self._publishing = publishing

    async def publish(self, messages: Sequence[Outgoing], *, within: float) -> None:
        """See `RabbitPublishing.publish`."""
        if not messages:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(done.set)

        batch = Batch(messages, tell)
        within = min(within, self._publishing.begin(batch))
        try:
            async with asyncio.timeout(within):
                await done.wait()
        except TimeoutError:
            if not batch.done.is_set():  # it may be just this loop that is late
                raise self._publishing.give_up(batch, within) from None
        except asyncio.CancelledError:
            self._publishing.give_up(batch, within)
            raise
        if batch.error is not None:
            raise batch.error
