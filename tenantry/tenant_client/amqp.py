"""A tenant's own connection to RabbitMQ, driven by the calling thread; every call is bounded.

Its consumer is one of those that compete for its group's queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import pika
from pika import BasicProperties
from pika.channel import Channel
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import PERSISTENT_DELIVERY_MODE, Basic

from tenantry.broker.rabbitmq.connection import DrivenConnection, describe, secure
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls

TIMEOUT: Final = 10.0
"""Seconds any single answer of the broker may take."""

GOODBYE: Final = 2.0
"""Seconds the broker may take for the closing handshake."""

CONFIRMS_A_SECOND: Final = 500
"""The slowest broker that a big batch waits for, in messages confirmed a second."""

ACCESS_REFUSED: Final = 403
PRECONDITION_FAILED: Final = 406

CANCELLED: Final = "the broker has ended the consumer: its queue is not there any more"


class TenantClientError(Exception):
    """The broker refused the connection, lost it, or did not answer in time."""


class AttemptResult(Enum):
    """The broker's verdict on an attempt."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    ABSENT = "absent"
    """There is no such object, as the broker says before it checks rights: that is no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishResult:
    """Which of a batch's messages (by index) were confirmed; `reason` says why others weren't."""

    confirmed: frozenset[int]
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMessage:
    """A message for a tenant's exchange; it is published as persistent."""

    routing_key: str
    body: bytes
    message_id: str
    content_type: str = "text/plain"
    published_at_ms: int = 0
    user_id: str | None = None


class Closing:
    """Remembers why a channel was closed."""

    def __init__(self, channel: Channel, step: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._step = step
        channel.add_on_close_callback(self._closed)

    def _closed(self, _channel: Channel, error: BaseException) -> None:
        self.error = error
        self._step()


class Confirms:
    """Publishes batches on one channel, one at a time, and counts the broker's answers.

    `step` is called after every answer.
    """

    def __init__(self, channel: Channel, step: Callable[[], None]) -> None:
        self.channel = channel
        self.closing = Closing(channel, step)
        self.ready = False
        self.waiting: dict[int, int] = {}
        self._step = step
        self._next_tag = 1
        self._ids: list[str] = []
        self._acked: set[int] = set()
        self._nacked = 0
        self._returned: dict[str, str] = {}
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_answer, callback=self._on_ready)

    @property
    def settled(self) -> bool:
        """Whether no further answer is to come."""
        return not self.waiting or not self.channel.is_open

    @property
    def confirmed(self) -> frozenset[int]:
        """The indexes of the batch's messages that have certainly reached a queue."""
        return frozenset(one for one in self._acked if self._ids[one] not in self._returned)

    @property
    def reason(self) -> str | None:
        """Why not every message was confirmed."""
        if self.closing.error is not None:
            return describe(self.closing.error)
        if self._returned:
            return f"no queue takes it: {next(iter(self._returned.values()))}"
        return "the broker refused it" if self._nacked else None

    def send(
        self, exchange: str, batch: Sequence[TenantMessage], *, mandatory: bool = True
    ) -> None:
        """Publish a batch; earlier batches are forgotten."""
        self._ids = [mail.message_id for mail in batch]
        self._acked, self._nacked, self._returned, self.waiting = set(), 0, {}, {}
        for index, mail in enumerate(batch):
            self.channel.basic_publish(
                exchange,
                mail.routing_key,
                mail.body,
                BasicProperties(  # type: ignore[no-untyped-call]
                    content_type=mail.content_type,
                    delivery_mode=PERSISTENT_DELIVERY_MODE,
                    message_id=mail.message_id,
                    user_id=mail.user_id,
                    timestamp=mail.published_at_ms // 1000,
                    headers={"timestamp_in_ms": mail.published_at_ms},
                ),
                mandatory=mandatory,
            )
            self.waiting[self._next_tag] = index
            self._next_tag += 1

    def _on_ready(self, _frame: object) -> None:
        self.ready = True
        self._step()

    def _on_answer(self, frame: Any) -> None:
        method = frame.method
        tags = [method.delivery_tag]
        if method.multiple:
            tags = [tag for tag in self.waiting if tag <= method.delivery_tag]
        for tag in tags:
            index = self.waiting.pop(tag, None)
            if index is None:
                continue
            if isinstance(method, Basic.Ack):
                self._acked.add(index)
            else:
                self._nacked += 1
        self._step()

    def _on_return(
        self, _channel: Channel, method: Basic.Return, properties: BasicProperties, _body: bytes
    ) -> None:
        """Record an unroutable message; the broker still acks it, right after this."""
        self._returned[properties.message_id or ""] = method.reply_text


class AmqpClient:
    """One connection, and a channel with confirms. Belongs to the thread that opened it."""

    def __init__(
        self, amqp_url: str, *, name: str, timeout: float = TIMEOUT, tls: Tls = SYSTEMS
    ) -> None:
        """Raises `BrokerError` for files of `tls` that can't be used."""
        self._parameters = pika.URLParameters(amqp_url)
        secure(self._parameters, amqp_url, tls)
        self._parameters.heartbeat = 30
        self._parameters.socket_timeout = timeout
        self._parameters.stack_timeout = timeout
        self._parameters.connection_attempts = 1
        self._parameters.client_properties = {"connection_name": name}
        self._timeout = timeout
        self._driven: DrivenConnection[pika.SelectConnection] | None = None
        self._publisher: Confirms | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; once lost it stays lost until the next `open`."""
        return self._driven is not None and self._driven.is_open

    def open(self) -> None:
        """Connect and log in. Raises `TenantClientError`."""
        self._publisher = None
        self._driven = DrivenConnection(
            self._parameters, pika.SelectConnection, failed=TenantClientError, timeout=self._timeout
        )
        try:
            self._driven.open()
        except TenantClientError:
            self.close()
            raise

    def close(self) -> None:
        """Close and free the connection; harmless twice, and before `open`."""
        driven, self._driven, self._publisher = self._driven, None, None
        if driven is not None:
            driven.close(GOODBYE)

    def idle(self, seconds: float) -> None:
        """Let time pass while heartbeats go on. Raises `TenantClientError` on a lost connection."""
        if seconds > 0:
            self._connection().wait(lambda: False, seconds, patient=True)

    def publish(self, exchange: str, batch: Sequence[TenantMessage]) -> PublishResult:
        """Publish a batch and wait for the broker's answer to each message.

        Never raises. Unconfirmed messages may have been accepted all the same, so publish them
        again with the same message ids.
        """
        confirms: Confirms | None = None
        try:
            confirms = self._publisher or self._confirms()
            self._publisher = None
            confirms.send(exchange, batch)
            self._connection().wait(
                lambda: confirms.settled, self._timeout + len(batch) / CONFIRMS_A_SECOND
            )
        except (TenantClientError, AMQPError) as error:
            # The channel is not reused: a late answer must not count for another batch.
            confirmed = frozenset() if confirms is None else confirms.confirmed
            return PublishResult(confirmed=confirmed, reason=describe(error))
        if confirms.channel.is_open:
            self._publisher = confirms
        return PublishResult(confirmed=confirms.confirmed, reason=confirms.reason)

    def try_to_publish(
        self, exchange: str, routing_key: str, *, user_id: str | None = None
    ) -> AttemptResult:
        """Try to publish a message that no queue takes, and return whether that is allowed.

        It is not mandatory and its key is bound to nothing, so it is confirmed and dropped. With
        `user_id` it claims to be that user's, which the broker refuses with an error of its own.
        Raises `TenantClientError` if the broker gives no verdict.
        """
        confirms = self._confirms()
        probe = TenantMessage(
            routing_key=routing_key, body=b"", message_id="isolation-probe", user_id=user_id
        )
        confirms.send(exchange, [probe], mandatory=False)
        self._connection().wait(lambda: confirms.settled)
        refusals = (ACCESS_REFUSED,) if user_id is None else (ACCESS_REFUSED, PRECONDITION_FAILED)
        return self._verdict(confirms.channel, confirms.closing, refusals)

    def attempt(
        self, operation: Callable[..., object], *arguments: object, **keywords: object
    ) -> AttemptResult:
        """Try an operation of `Channel` on a channel of its own; return whether it is allowed.

        Raises `TenantClientError` as `try_to_publish`.
        """
        driven = self._connection()
        channel = driven.channel()
        closing = Closing(channel, driven.wake)
        answered: list[object] = []

        def answer(frame: object) -> None:
            answered.append(frame)
            driven.wake()

        operation(channel, *arguments, callback=answer, **keywords)
        driven.wait(lambda: bool(answered) or not channel.is_open)
        return self._verdict(channel, closing)

    def try_to_consume(self, queue: str) -> AttemptResult:
        """Try to consume from a queue, and return whether that is allowed; take nothing from it.

        The right to read is checked when consuming begins. The consumer has the lowest priority and
        gets one message at most, so that messages go to other consumers first. Should it get one,
        that returns to the queue when the channel is closed at once. Raises as `try_to_publish`.
        """

        def consume(channel: Channel, *, callback: Callable[[object], None]) -> None:
            channel.basic_qos(prefetch_count=1)
            ignored = lambda *_delivery: None  # noqa: E731
            channel.basic_consume(
                queue, ignored, arguments={"x-priority": -1000}, callback=callback
            )

        return self.attempt(consume)

    def _verdict(
        self, channel: Channel, closing: Closing, refusals: Sequence[int] = (ACCESS_REFUSED,)
    ) -> AttemptResult:
        if channel.is_open:
            channel.close()
            self._connection().wait(lambda: closing.error is not None)
            return AttemptResult.ALLOWED
        error = closing.error
        if isinstance(error, ChannelClosedByBroker):
            # The broker checks permissions first: 404 means allowed, had it been there.
            return AttemptResult.REFUSED if error.reply_code in refusals else AttemptResult.ALLOWED
        raise TenantClientError(describe(error))

    def _confirms(self) -> Confirms:
        driven = self._connection()
        confirms = Confirms(driven.channel(), driven.wake)
        driven.wait(lambda: confirms.ready or not confirms.channel.is_open)
        return confirms

    def _connection(self) -> DrivenConnection[pika.SelectConnection]:
        if self._driven is None:
            raise TenantClientError("not connected")
        return self._driven


class AmqpReader(AmqpClient):
    """Consumes one queue (`TopicReader`), with at most `prefetch` messages uncommitted."""

    def __init__(
        self,
        amqp_url: str,
        *,
        queue: str,
        name: str,
        prefetch: int,
        timeout: float = TIMEOUT,
        tls: Tls = SYSTEMS,
    ) -> None:
        super().__init__(amqp_url, name=name, timeout=timeout, tls=tls)
        self._queue = queue
        self._prefetch = prefetch
        self._consuming: Channel | None = None
        self._closing: Closing | None = None
        self._cancelled = False
        self._arrived: deque[tuple[int, bytes]] = deque()
        self._received = 0

    @property
    def is_open(self) -> bool:
        """See `TopicReader.is_open`."""
        channel = self._consuming
        return super().is_open and channel is not None and channel.is_open and not self._cancelled

    def open(self) -> None:
        """See `TopicReader.open`."""
        super().open()
        try:
            self._consume()
        except (TenantClientError, AMQPError) as error:
            self.close()
            raise TenantClientError(describe(error)) from error

    def close(self) -> None:
        """See `TopicReader.close`. Earlier commits reach the broker first."""
        super().close()
        self._consuming = None

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """See `TopicReader.receive`."""
        self._connection().wait(
            lambda: len(self._arrived) >= most or not self.is_open, seconds, patient=True
        )
        self._check()
        batch = [self._arrived.popleft() for _ in range(min(most, len(self._arrived)))]
        if batch:
            self._received = batch[-1][0]
        return [body for _, body in batch]

    def commit(self) -> None:
        """See `TopicReader.commit`."""
        self._channel_of().basic_ack(self._received, multiple=True)

    def at_end(self) -> bool:
        """See `TopicReader.at_end`."""
        answers: list[Any] = []

        def answered(frame: object) -> None:
            answers.append(frame)
            driven.wake()

        driven, channel = self._connection(), self._channel_of()
        channel.queue_declare(self._queue, passive=True, callback=answered)
        driven.wait(lambda: bool(answers) or not self.is_open)
        self._check()
        return answers[0].method.message_count == 0 and not self._arrived

    def _consume(self) -> None:
        driven = self._connection()
        channel = self._consuming = driven.channel()
        self._closing = Closing(channel, driven.wake)
        self._cancelled = False
        self._arrived.clear()
        begun: list[object] = []

        def delivered(_channel: object, method: Any, _properties: object, body: bytes) -> None:
            self._arrived.append((method.delivery_tag, body))
            driven.wake()

        def cancelled(_frame: object) -> None:
            self._cancelled = True
            driven.wake()

        def consuming(frame: object) -> None:
            begun.append(frame)
            driven.wake()

        channel.add_on_cancel_callback(cancelled)
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.basic_consume(self._queue, delivered, callback=consuming)
        driven.wait(lambda: bool(begun) or not self.is_open)
        self._check()

    def _channel_of(self) -> Channel:
        self._check()
        if self._consuming is None:
            raise TenantClientError("not connected")
        return self._consuming

    def _check(self) -> None:
        """Raise `TenantClientError` if nothing can be consumed any more."""
        if self.is_open:
            return
        if self._cancelled:
            raise TenantClientError(CANCELLED)
        if self._closing is not None and self._closing.error is not None:
            raise TenantClientError(describe(self._closing.error))
        raise TenantClientError("not connected")
