"""Messages for the benchmarks: 250 bytes of JSON, durable, confirmed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pika

IN_FLIGHT = 4000


def body(number: int = 0) -> bytes:
    """Give 250 bytes of JSON."""
    bare = {"event": "order.created", "number": number, "note": ""}
    pad = 250 - len(json.dumps(bare))
    return json.dumps(bare | {"note": "x" * pad}).encode()


class Filler:
    """Publishes `count` messages as fast as the broker confirms them, or at a fixed rate."""

    def __init__(
        self, url: str, targets: list[tuple[str, str]], count: int, rate: float | None = None
    ) -> None:
        self._targets = targets
        self._count = count
        self._rate = rate
        self._sent = self._confirmed = 0
        self._payload = body()
        self._channel: Any = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda c: c.channel(on_open_callback=self._opened),
            on_open_error_callback=self._failed,
            on_close_callback=lambda c, _: c.ioloop.stop(),
        )

    def run(self) -> float:
        """Publish all messages; return the messages a second."""
        started = time.perf_counter()
        self._started = started
        self._connection.ioloop.start()
        if self._confirmed < self._count:
            raise RuntimeError(f"only {self._confirmed} of {self._count} were confirmed")
        return self._count / (time.perf_counter() - started)

    def _failed(self, connection: pika.SelectConnection, _error: BaseException) -> None:
        connection.ioloop.stop()

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm)
        self._more()

    def _more(self) -> None:
        now = time.perf_counter()
        due = self._count if self._rate is None else int((now - self._started) * self._rate) + 1
        while self._sent < min(due, self._count) and self._sent - self._confirmed < IN_FLIGHT:
            exchange, key = self._targets[self._sent % len(self._targets)]
            self._channel.basic_publish(
                exchange,
                key,
                self._payload,
                pika.BasicProperties(
                    delivery_mode=2,
                    content_type="application/json",
                    message_id=str(uuid4()),
                    headers={"timestamp_in_ms": int(time.time() * 1000)} if self._rate else None,
                ),
            )
            self._sent += 1
        if self._rate is not None and self._sent < self._count:
            self._connection.ioloop.call_later(1 / self._rate, self._more)

    def _on_confirm(self, frame: Any) -> None:
        self._confirmed = max(self._confirmed, frame.method.delivery_tag)
        if self._confirmed >= self._count:
            self._connection.close()
        elif self._rate is None:
            self._more()


def wait_until(condition: Callable[[], bool], *, timeout: float, every: float = 0.02) -> None:
    """Wait for `condition` at most `timeout` seconds. Raises `TimeoutError` after that."""
    until = time.perf_counter() + timeout
    while not condition():
        if time.perf_counter() > until:
            raise TimeoutError("the benchmark has waited too long")
        time.sleep(every)
