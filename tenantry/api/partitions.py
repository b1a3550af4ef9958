"""Which partition of a topic a message goes to."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Final

from tenantry.domain import names

_MAX_TURNS: Final = 10_000


def partition_of_key(key: str, partitions: int) -> int:
    """Give the partition of a key: CRC-32 (as in zlib) of its UTF-8 bytes, modulo `partitions`.

    It never changes for the same number of partitions, and any producer can compute it.
    """
    return zlib.crc32(key.encode()) % partitions


class Router:
    """Gives routing keys; messages without a key take turns over a topic's partitions.

    Callable from any thread.
    """

    def __init__(self) -> None:
        self._turns: dict[tuple[str, str], Iterator[int]] = {}

    def routing_key(self, tenant_id: str, topic: str, partitions: int, key: str | None) -> str:
        """Give the routing key of a message; the default topic has one queue and no partitions."""
        if topic == names.DEFAULT_TOPIC:
            return topic
        if key is not None:
            return f"{topic}.{partition_of_key(key, partitions)}"
        return f"{topic}.{self._turn(tenant_id, topic) % partitions}"

    def _turn(self, tenant_id: str, topic: str) -> int:
        turn = self._turns.get((tenant_id, topic))
        if turn is None:
            if len(self._turns) >= _MAX_TURNS:  # begun anew, a turn is still balanced
                self._turns.clear()
            turn = self._turns.setdefault((tenant_id, topic), itertools.count())
        return next(turn)
