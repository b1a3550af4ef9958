"""Publishing to RabbitMQ with confirms: one connection and one thread for everybody's messages."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import structlog
from pika.exceptions import ChannelClosedByBroker
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
from tenantry.broker.rabbitmq.wire import UnencodableError, encode
from tenantry.loops import Heartbeat

if TYPE_CHECKING:
    from pika.channel import Channel
    from pika.frame import Method

log = structlog.get_logger(__name__)

MAX_UNCONFIRMED: Final = 5_000
MAX_UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024
"""How much may be on its way to the broker at once; the rest waits here, with its callers."""

MAX_OF_ONE: Final = 0.75
"""How large a part of both may be one exchange's: a queue of its that does not confirm leaves the
others room."""

LONGEST_DELAY: Final = 0.1
"""Seconds until a confirm beyond which no more of an exchange is on its way than `ENOUGH`.

The broker takes what is on its way before anybody's next message. It is so while more than one
exchange is in use: a broker that is far away takes long, too.
"""

IN_USE: Final = 10.0
"""Seconds for which an exchange counts as in use after a message to it."""

ENOUGH: Final = 250

IN_A_ROW: Final = 20
"""Messages of one exchange that go out before it is another's turn."""

MAX_BURST: Final = 250
"""Messages sent before the loop looks at its socket again."""

REOPEN_AFTER: Final = 0.5
"""Seconds before a channel that the broker closed is opened again."""

BLOCKED_PATIENCE: Final = 1.0
"""Seconds a caller waits for a broker that takes no messages now."""

_NOT_FOUND: Final = 404


_MANY_RETURNS: Final = 1_000

_Key: TypeAlias = tuple[str, str, str | None]
"""Exchange, routing key, message id."""


class Batch:
    """The messages of one call, and whether all are confirmed. `done` is set once, for good.

    The caller waits for `done`; everything else but `abandoned` belongs to the loop's thread.
    """

    __slots__ = ("_left", "_unsent", "abandoned", "done", "error", "exchange")

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.exchange = messages[0].exchange
        """Whose turn it takes: a call's messages go to one exchange."""
        self._unsent = deque(messages)
        self._left = len(messages)
        self.done = threading.Event()
        self.error: BrokerError | None = None
        self.abandoned = False

    @property
    def wanted(self) -> bool:
        """Whether its caller still waits for it."""
        return not self.abandoned and not self.done.is_set()

    def next_unsent(self) -> Outgoing | None:
        """Take the next message to send; None if there is none, or the caller waits no more."""
        if not self.wanted or not self._unsent:
            return None
        return self._unsent.popleft()

    def send_again(self, messages: Iterable[Outgoing]) -> None:
        """Put back messages that were sent and lost, before those not sent yet."""
        self._unsent.extendleft(reversed(list(messages)))

    def confirmed(self) -> None:
        """Count a message as taken by the broker."""
        self._left -= 1
        if self._left == 0:
            self.done.set()

    def fail(self, error: BrokerError) -> None:
        """End the call with an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Waiting:
    """Calls that still have messages to be sent. Exchanges take turns, and so do tenants.

    However much one of them publishes, another's message goes out after a few of its messages.
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
        """Have a call wait for those before it to the same exchange."""
        self._calls.setdefault(batch.exchange, deque()).append(batch)

    def put_first(self, batch: Batch) -> None:
        """Have a call go on before the others to its exchange, unless it waits already."""
        calls = self._calls.setdefault(batch.exchange, deque())
        if batch not in calls:
            calls.appendleft(batch)

    def next(self, is_full: Callable[[str], bool]) -> tuple[Batch, Outgoing] | None:
        """Take the next message to send; none to an exchange that is full."""
        # Once more for the one that has just had its turn: it may be the only one.
        for _ in range(len(self._calls) + 1):
            if not self._calls:
                break
            exchange, calls = next(iter(self._calls.items()))
            if self._in_a_row < IN_A_ROW and not is_full(exchange):
                while calls:
                    batch = calls[0]
                    if (message := batch.next_unsent()) is not None:
                        self._in_a_row += 1
                        return batch, message
                    calls.popleft()
            self._in_a_row = 0
            if calls:
                self._calls.move_to_end(exchange)
            else:
                del self._calls[exchange]
        return None

    def forget_abandoned(self) -> None:
        """Drop the calls whose callers wait no more."""
        for exchange, calls in list(self._calls.items()):
            left = deque(batch for batch in calls if not batch.abandoned)
            if left:
                self._calls[exchange] = left
            else:
                del self._calls[exchange]

    def clear(self) -> None:
        """Drop all calls."""
        self._calls.clear()


class _Sent(NamedTuple):
    batch: Batch
    message: Outgoing
    at: float


class _Share:
    """What one exchange has of the messages on their way."""

    __slots__ = ("bytes", "count", "delay")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.delay = 0.0
        """Seconds that the latest confirm has taken."""


class Unconfirmed:
    """One channel's messages by their sequence number, from 1, as the broker counts them too."""

    def __init__(self) -> None:
        self._sent: dict[int, _Sent] = {}
        self._oldest = 1
        self._next = 1
        self._returned: dict[_Key, int] = {}
        self._shares: dict[str, _Share] = {}
        self._latest = ""
        """The exchange of the latest message."""
        self._changed_at = -IN_USE
        """When that was last another than before."""
        self._now = 0.0
        self.bytes = 0

    def has_its_share(self, exchange: str) -> bool:
        """Tell whether an exchange has as much on its way as one may have."""
        share = self._shares.get(exchange)
        return share is not None and (
            share.count >= MAX_UNCONFIRMED * MAX_OF_ONE
            or share.bytes >= MAX_UNCONFIRMED_BYTES * MAX_OF_ONE
            or (
                share.count >= ENOUGH
                and share.delay > LONGEST_DELAY
                and self._now - self._changed_at < IN_USE
            )
        )

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, batch: Batch, message: Outgoing, now: float = 0.0) -> None:
        """Note a message that was sent just now."""
        self._sent[self._next] = _Sent(batch, message, now)
        self._now = now
        if batch.exchange != self._latest:
            if self._latest:
                self._changed_at = now
            self._latest = batch.exchange
        self._next += 1
        size = len(message.body)
        self.bytes += size
        share = self._shares.get(batch.exchange)
        if share is None:
            share = self._shares[batch.exchange] = _Share()
        share.count += 1
        share.bytes += size

    def returned(self, exchange: str, routing_key: str, message_id: str | None) -> None:
        """Note that the broker gave a message back, which it then confirms nevertheless.

        A return names no sequence number. Every message sent so far that looks the same counts
        as returned: to say so of one too many is harmless, of one too few would lose it.
        """
        self._returned[exchange, routing_key, message_id] = self._next - 1
        if len(self._returned) > _MANY_RETURNS:
            self._forget_returns()

    def settle(
        self,
        tag: int,
        *,
        multiple: bool,
        refusal: Callable[[], BrokerError] | None,
        now: float = 0.0,
    ) -> None:
        """Note the broker's answer to a message, or to all up to it: taken, or refused."""
        self._now = max(self._now, now)
        for one in range(self._oldest, tag + 1) if multiple else (tag,):
            sent = self._sent.pop(one, None)
            if sent is None:
                continue
            batch, message, at = sent
            self._arrived(batch.exchange, len(message.body), now - at)
            if refusal is not None:
                batch.fail(refusal())
            elif self._returned and self._was_returned(one, message):
                batch.fail(
                    UnroutableError(
                        f"no queue of {message.exchange!r} takes the key {message.routing_key!r}"
                    )
                )
            else:
                batch.confirmed()
        if multiple:
            self._oldest = max(self._oldest, tag + 1)
        if not self._sent:
            self._oldest = self._next
            self._returned.clear()

    def _arrived(self, exchange: str, size: int, delay: float) -> None:
        self.bytes -= size
        share = self._shares[exchange]
        share.delay = delay
        share.count -= 1
        share.bytes -= size
        if not share.count:
            del self._shares[exchange]

    def batches(self) -> list[Batch]:
        """List the calls some message of which is unconfirmed, in the order they were sent."""
        return list(dict.fromkeys(sent.batch for sent in self._sent.values()))

    def exchanges(self) -> set[tuple[Batch, str]]:
        """List the calls some message of which is unconfirmed, each with the exchanges it uses."""
        return {(batch, message.exchange) for batch, message, _ in self._sent.values()}

    def lose_channel(self) -> list[Batch]:
        """Begin anew, as a new channel does; give the calls whose messages must be sent again."""
        lost: dict[Batch, list[Outgoing]] = {}
        for batch, message, _ in self._sent.values():
            if batch.wanted:
                lost.setdefault(batch, []).append(message)
        for batch, messages in lost.items():
            batch.send_again(messages)
        self._sent.clear()
        self._shares.clear()
        self._returned.clear()
        self._oldest = self._next = 1
        self.bytes = 0
        return list(lost)

    def _was_returned(self, number: int, message: Outgoing) -> bool:
        key = (message.exchange, message.routing_key, message.message_id)
        return number <= self._returned.get(key, 0)

    def _forget_returns(self) -> None:
        oldest = min(self._sent, default=self._next)
        self._returned = {key: last for key, last in self._returned.items() if last >= oldest}


class RabbitPublishing:
    """Publishes durable messages. `run` and `stop` are the owner's to call.

    What a broken connection leaves unconfirmed is published again on the next one, with the
    same message ids, until the caller's time is up.
    """

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
        # From here to the loop's thread; everything below belongs to that thread.
        self._incoming: deque[Batch] = deque()
        self._stopped = threading.Event()
        self._waiting = Waiting()
        self._unconfirmed = Unconfirmed()
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
        """Publish what callers bring until `stop`; belongs on a thread of its own."""
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
        self._incoming.append(batch)
        if self._stopped.is_set():
            raise BrokerUnavailableError("publishing has been stopped")
        self._loop.call(self._pump)
        if self._blocked is not None:
            # It may take long: better to say so than to keep everybody waiting.
            timeout = min(timeout, BLOCKED_PATIENCE)
        if not batch.done.wait(timeout):
            batch.abandoned = True
            with suppress(ValueError, IndexError):
                # Unless the loop has taken it already, which then sees that it is abandoned.
                self._incoming.remove(batch)
            raise self._late(timeout)
        if batch.error is not None:
            raise batch.error

    def _late(self, timeout: float) -> BrokerUnavailableError:
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
        """Fail the batches that made the broker close the channel; the others go out again."""
        if error.reply_code == _NOT_FOUND:
            for batch, exchange in self._unconfirmed.exchanges():
                if f"'{exchange}'" in error.reply_text:
                    batch.fail(UnroutableError(f"there is no stream {exchange!r}"))
            return
        log.warning("broker.publishing_refused", error=describe(error))
        for batch in self._unconfirmed.batches():
            batch.fail(BrokerError(f"RabbitMQ refuses the messages: {error.reply_text}"))

    def _lose_channel(self) -> None:
        self._channel = None
        self._ready = False
        # Before what waits already, and in the old order.
        for batch in reversed(self._unconfirmed.lose_channel()):
            self._waiting.put_first(batch)

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
        self._unconfirmed.settle(
            answer.delivery_tag,
            multiple=answer.multiple,
            refusal=refusal,
            now=time.monotonic(),
        )
        self._pump()

    def _pump(self) -> None:
        """Send what waits, as far as the window is open, and let others have a turn."""
        self._pumping = False
        while self._incoming:
            self._waiting.add(self._incoming.popleft())
        channel, connection = self._channel, self._connection
        if not self._ready or self._blocked is not None or channel is None or connection is None:
            self._waiting.forget_abandoned()
            return
        frames: list[bytes] = []
        is_full, now = self._unconfirmed.has_its_share, time.monotonic()
        while self._window_is_open() and (turn := self._waiting.next(is_full)) is not None:
            batch, message = turn
            if frame := self._encode(connection, channel, batch, message):
                frames.append(frame)
                self._unconfirmed.sent(batch, message, now)
                if len(frames) >= MAX_BURST:
                    break
        if frames:
            # One write for all. What pika offers instead, `Channel.basic_publish`, makes three
            # writes a message, and takes three times as long altogether.
            connection.send_frames(b"".join(frames))
        if len(frames) >= MAX_BURST and not self._pumping:
            self._pumping = True
            connection.ioloop.add_callback(self._pump)

    def _window_is_open(self) -> bool:
        unconfirmed = self._unconfirmed
        return len(unconfirmed) < MAX_UNCONFIRMED and unconfirmed.bytes < MAX_UNCONFIRMED_BYTES

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
