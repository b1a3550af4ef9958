"""Where the broker's words to a consumer go: its mailbox."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.actors.clock import tell
from tenantry.actors.messages import Arrived, Cancelled, ChannelLost, Consuming, QueuesSilent, Ref
from tenantry.broker.port import Delivery


class MailboxSink:
    """Carries the broker's words into a consumer's mailbox; runs on the broker's thread."""

    def __init__(self, consumer: Ref) -> None:
        self._consumer = consumer

    def consuming(self, generation: int) -> None:
        """Every queue is being consumed."""
        tell(self._consumer, Consuming(generation=generation))

    def deliveries(self, generation: int, batch: list[Delivery]) -> None:
        """Deliveries have come in, in the order of their tags."""
        tell(self._consumer, Arrived(generation=generation, deliveries=batch))

    def cancelled(self, generation: int) -> None:
        """No delivery follows in this generation."""
        tell(self._consumer, Cancelled(generation=generation))

    def silent(self, queues: Sequence[str]) -> None:
        """These queues do not answer."""
        tell(self._consumer, QueuesSilent(queues=tuple(queues)))

    def lost(self, generation: int, reason: str, *, missing: bool) -> None:
        """The channel is gone; `missing` if a queue was not there."""
        tell(self._consumer, ChannelLost(generation=generation, reason=reason, missing=missing))
