"""One producer: batches of one tenant and topic, confirmed by the broker or tried again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.domain import names
from tenantry.tenant_client.access import Say
from tenantry.tenant_client.amqp import AmqpClient, TenantClientError
from tenantry.tenant_client.confirms import TenantMessage
from tenantry.tenant_client.sql import SqlClient

ATTEMPTS: Final = 10
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0
"""Seconds: with ten attempts a batch outlives half a minute without a broker."""

FAILED_BATCHES: Final = 2
"""Batches that fail for good, one after the other, before the rest is given up."""

CLOSED_IDLE: Final = 20.0
"""Intervals from this many seconds on are waited out without a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of a producer's messages: confirmed + failed = sent."""

    sent: int
    confirmed: int

    @property
    def failed(self) -> int:
        """Messages that the broker never confirmed."""
        return self.sent - self.confirmed


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one producer sends. `run` makes its message ids its own; `interval` is in seconds."""

    run: str
    url: str
    tenant_id: str
    topic: str
    kind: str
    producer: int
    partitions: int
    batches: int
    batch_size: int
    interval: float
    tls: Tls = SYSTEMS


class Sender:
    """Sends an assignment's batches in order. `run` belongs on a thread of its own."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        say: Say,
        stop: threading.Event,
        sent: Callable[[int], None],
    ) -> None:
        """`sent` is told how many messages each finished batch had, confirmed or not."""
        self._assignment = assignment
        self._say = say
        self._stop = stop
        self._sent = sent
        name = f"producer {assignment.producer} of {assignment.topic}"
        self._link = (
            AmqpClient(assignment.url, name=name, tls=assignment.tls)
            if assignment.url.startswith("amqp")
            else SqlClient(assignment.url, name=name)
        )

    def run(self) -> Tally:
        """Send everything and count. Never raises for what the broker does."""
        todo = self._assignment
        confirmed = failures = 0
        try:
            for number in range(todo.batches):
                if self._stop.is_set() or failures >= FAILED_BATCHES:
                    break
                if number:
                    self._pause()
                taken = self._send(number)
                confirmed += taken
                failures = 0 if taken == todo.batch_size else failures + 1
                self._sent(todo.batch_size)
        finally:
            self._link.close()
        return Tally(sent=todo.batches * todo.batch_size, confirmed=confirmed)

    def _send(self, number: int) -> int:
        """Send one batch, what was not confirmed again and again; give how many were."""
        todo = self._assignment
        left = self._batch(number)
        whom = f"by tenant: {todo.tenant_id}, producer: {todo.producer}"
        where = f"to: {names.stream_name(todo.tenant_id)} -> {todo.topic}"
        delay = FIRST_BACKOFF
        for attempt in range(1, ATTEMPTS + 1):
            left, reason = self._try(left)
            if not left:
                break
            if attempt == ATTEMPTS or self._stop.is_set():
                self._say(f"Failed: {len(left)} message(s) {whom}, {where}: {reason}")
                break
            if attempt == 1:
                self._say(f"Retrying: {len(left)} message(s) {whom}, {where}: {reason}")
            self._stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(LONGEST_BACKOFF, delay * 2)
        taken = todo.batch_size - len(left)
        if taken:
            self._say(f"Sent: {taken} message(s) {whom}, {where}")
        return taken

    def _try(self, batch: list[TenantMessage]) -> tuple[list[TenantMessage], str | None]:
        """Publish once; give what was not confirmed, and why."""
        try:
            if not self._link.is_open:
                self._link.close()
                self._link.open()
        except TenantClientError as error:
            return batch, str(error)
        outcome = self._link.publish(names.stream_name(self._assignment.tenant_id), batch)
        left = [mail for index, mail in enumerate(batch) if index not in outcome.confirmed]
        return left, outcome.reason

    def _batch(self, number: int) -> list[TenantMessage]:
        todo = self._assignment
        now = time.time_ns() // 1_000_000
        first = number * todo.batch_size + 1
        return [
            TenantMessage(
                # Producers begin at different partitions, so that few messages spread evenly too.
                routing_key=f"{todo.topic}.{(todo.producer + message) % todo.partitions}",
                body=f"{todo.kind}-{todo.producer}-{message}".encode(),
                # The same for every attempt: a batch sent twice is stored once.
                message_id=f"{todo.run}-{todo.kind}-{todo.producer}-{message}",
                published_at_ms=now,
            )
            for message in range(first, first + todo.batch_size)
        ]

    def _pause(self) -> None:
        interval = self._assignment.interval
        if interval >= CLOSED_IDLE:
            self._link.close()
        end = time.monotonic() + interval
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            if self._link.is_open:
                with suppress(TenantClientError):  # lost: the next batch connects again
                    self._link.idle(min(left, 1.0))
            else:
                self._stop.wait(left)
