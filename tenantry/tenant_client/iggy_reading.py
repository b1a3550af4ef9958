"""A tenant's own consumer on Apache Iggy: reads partitions from stored offsets, by turns.

Iggy's consumer groups are not for a tenant: with the right to join one, it could join the daemon's.
So offsets are stored for a consumer without a group, and the consumers of a process share the
partitions out here, among themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from tenantry.broker.iggy import wire
from tenantry.broker.iggy.client import library
from tenantry.broker.iggy.topology import READERS, Place
from tenantry.broker.port import BrokerError
from tenantry.tenant_client.amqp import TIMEOUT, TenantClientError
from tenantry.tenant_client.iggy import IggyTenantClient

PAUSE: Final = 0.05
"""Seconds between polls of partitions that have nothing new."""


class Turns:
    """A topic's partitions, each read by one consumer at a time. Callable from any thread.

    A consumer that dies gives its partition back, and the next one takes it.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions: Final = partitions
        self._free = deque(range(partitions))
        self._guard = threading.Lock()

    def take(self) -> int | None:
        """Take the partition that was read longest ago; None while other consumers have all."""
        with self._guard:
            return self._free.popleft() if self._free else None

    def give(self, partition: int) -> None:
        """Release a partition to other consumers."""
        with self._guard:
            self._free.append(partition)


class IggyReader(IggyTenantClient):
    """Reads a topic (`TopicReader`), a batch from one partition at a time."""

    def __init__(
        self,
        iggy_url: str,
        *,
        stream: str,
        topic: str,
        turns: Turns,
        ca_file: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(iggy_url, ca_file=ca_file, timeout=timeout)
        self._stream = stream
        self._topic = topic
        self._turns = turns
        self._held: int | None = None
        self._last = 0
        self._empty = False

    def close(self) -> None:
        """See `TopicReader.close`."""
        self._release()
        super().close()

    def receive(self, most: int, seconds: float) -> Sequence[bytes]:
        """See `TopicReader.receive`."""
        until = time.monotonic() + seconds
        while True:
            self._release()
            self._empty = True
            for _ in range(self._turns.partitions):
                self._held = self._turns.take()
                if self._held is None:
                    # The consumers that hold the partitions see what is in them.
                    break
                if batch := self._poll(self._held, most):
                    self._empty = False
                    return batch
                self._release()
            if (left := until - time.monotonic()) <= 0:
                return []
            time.sleep(min(PAUSE, left))

    def commit(self) -> None:
        """See `TopicReader.commit`."""
        if self._held is None:
            return
        place = Place(self._stream, self._topic, self._held)
        request = wire.store_offset(READERS, place, self._last, alone=True)
        try:
            self.call(lambda client: client.send_binary_request(wire.STORE_OFFSET, request))
        except BrokerError as error:
            self.close()
            raise TenantClientError(str(error)) from error
        self._release()

    def at_end(self) -> bool:
        """See `TopicReader.at_end`: the last poll of all partitions found nothing."""
        return self._empty

    def _poll(self, partition: int, most: int) -> list[bytes]:
        iggy = library()
        try:
            found = self.call(
                lambda client: client.poll_messages(
                    self._stream,
                    self._topic,
                    consumer=iggy.Consumer.Single(READERS),
                    polling_strategy=iggy.PollingStrategy.Next(),
                    count=most,
                    auto_commit=False,
                    partition_id=partition,
                )
            )
        except BrokerError as error:
            self.close()
            raise TenantClientError(str(error)) from error
        if found:
            self._last = found[-1].offset()
        return [one.payload() for one in found]

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._turns.give(held)
