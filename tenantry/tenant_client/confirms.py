"""A channel in confirm mode: which messages of a batch the broker has taken for certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pika import BasicProperties
from pika.spec import PERSISTENT_DELIVERY_MODE, Basic

from tenantry.broker.rabbitmq.connection import describe

if TYPE_CHECKING:
    from pika.channel import Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMessage:
    """A message for a stream; it is published as persistent."""

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
        """Whether no answer is to come any more."""
        return not self.waiting or not self.channel.is_open

    @property
    def confirmed(self) -> frozenset[int]:
        """The indexes of the batch's messages that have reached a queue for certain."""
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
        """Publish a batch; those before it are forgotten."""
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
        """Note an unroutable message; the broker still acks it, right after this."""
        self._returned[properties.message_id or ""] = method.reply_text
