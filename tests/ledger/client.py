"""A tenant's own client, which remembers what the broker has confirmed to it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pika
from pika.exceptions import AMQPError

from tests.ledger.entries import KEY_HEADER
from tests.ledger.sender import Message, Sender

RECONNECT_AFTER = 0.1
EVERY = 0.05
"""Seconds between two rounds of publishing; each round publishes what is due by then."""


class Client(Sender):
    """Publishes with confirms, reconnects, sends the unconfirmed again.

    A message that no queue takes is an error; a `patient` client sends it again instead.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._stream = f"tenant_{self.tenant_id}_stream"
        self._parameters = pika.URLParameters(self._url)
        self._parameters.socket_timeout = 5
        self._parameters.stack_timeout = 5
        self._returned: set[str] = set()
        self._again: deque[Message] = deque()
        self._unconfirmed: dict[int, Message] = {}
        self._tag = 0
        self._lock = threading.Lock()
        self._connection: pika.SelectConnection | None = None
        self._channel: Any = None

    def _wake(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.ioloop.add_callback_threadsafe(self._more)

    def _run(self) -> None:
        while not self._done():
            connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=lambda c, _: c.ioloop.stop(),
                on_close_callback=lambda c, _: c.ioloop.stop(),
            )
            with self._lock:
                self._connection = connection
            try:
                connection.ioloop.start()
            except (AMQPError, OSError) as error:
                self.errors.append(repr(error))
            finally:
                with self._lock:
                    self._connection = None
                self._channel = None
                connection.ioloop.close()
            # In the order of their tags; the broker may have them already, with the same ids.
            self._again.extendleft(reversed(self._unconfirmed.values()))
            self._unconfirmed.clear()
            self._abandoned.wait(RECONNECT_AFTER)

    def _done(self) -> bool:
        return self._abandoned.is_set() or (
            self._finishing.is_set() and not self._unconfirmed and not self._again
        )

    def _opened(self, connection: pika.SelectConnection) -> None:
        self.connections += 1
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        self._tag = 0
        channel.add_on_return_callback(self._on_return)
        channel.add_on_close_callback(lambda *_: self._close())
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._tick())

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        """Note that no queue took a message; the confirm that follows means nothing."""
        if self._patient:
            headers = properties.headers or {}
            self._returned.add(str(properties.message_id or headers.get(KEY_HEADER)))
        else:
            self.errors.append(f"returned: {method.reply_text}")

    def _tick(self) -> None:
        self._more()
        connection = self._connection
        if connection is not None and self._channel is not None and connection.is_open:
            connection.ioloop.call_later(EVERY, self._tick)

    def _close(self) -> None:
        self._channel = None
        connection = self._connection
        if connection is not None and connection.is_open:
            connection.close()

    def _more(self) -> None:
        channel = self._channel
        if self._done() and self._connection is not None:
            if self._connection.is_open:
                self._close()
            return
        while channel is not None and channel.is_open and len(self._unconfirmed) < self._window:
            if self._again:
                message = self._again.popleft()
            elif self._finishing.is_set() or self._due() <= 0:
                return
            else:
                message = self._next()
            self._tag += 1
            self._unconfirmed[self._tag] = message
            channel.basic_publish(
                self._stream,
                message.entry.target.routing_key,
                message.draft.body,
                pika.BasicProperties(
                    delivery_mode=2,
                    message_id=message.draft.message_id,
                    content_type=message.draft.content_type,
                    headers=message.draft.headers,
                ),
                mandatory=True,
            )

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        messages = [self._unconfirmed.pop(tag) for tag in tags]
        if isinstance(method, pika.spec.Basic.Ack):
            if self._returned:
                self._again.extend(one for one in messages if one.draft.key in self._returned)
                messages = [one for one in messages if one.draft.key not in self._returned]
                self._returned.difference_update(one.draft.key for one in self._again)
            self._note(messages)
        else:
            self._again.extend(messages)
        self._more()
