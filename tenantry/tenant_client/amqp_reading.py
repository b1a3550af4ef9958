"""A tenant's own consumer on RabbitMQ: one of those that compete for its group's queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from pika.exceptions import AMQPError

from tenantry.broker.rabbitmq.connection import describe
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.tenant_client.amqp import TIMEOUT, AmqpClient, Closing, TenantClientError

if TYPE_CHECKING:
    from pika.channel import Channel

CANCELLED: Final = "the broker has ended the consumer: its queue is not there any more"


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
