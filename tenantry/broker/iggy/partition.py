"""A consumed partition: how far it was read, given out and settled."""

from __future__ import annotations

from typing import Final

from tenantry.broker.budget import OVERHEAD
from tenantry.broker.iggy.offsets import OffsetWindow
from tenantry.broker.iggy.topology import Place, place_of
from tenantry.broker.port import QueueSpec

FIRST_POLL: Final = 32
"""Messages fetched before their size is known."""

MOST: Final = 1000
"""The most messages fetched at once."""

POLL_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of an answer, if messages are as large as those before."""


class Partition:
    """What this process knows of a partition, for as long as its topic is the same.

    It belongs to the thread that reads. It outlives a subscription: settled messages stay settled
    for the next one.
    """

    __slots__ = (
        "excused",
        "hungry",
        "made",
        "mean",
        "next",
        "place",
        "prefetch",
        "redelivered_up_to",
        "seen",
        "spec",
        "stored",
        "unsettled",
        "window",
    )

    def __init__(self, spec: QueueSpec, *, made: int, floor: int, redelivered_up_to: int) -> None:
        self.spec = spec
        self.place: Final[Place] = place_of(spec)
        self.made = made
        """When the topic was made, in microseconds; it tells topics of the same name apart."""
        self.window = OffsetWindow(floor)
        self.stored = floor
        """The floor that the server has stored."""
        self.next = floor
        """The offset to be read next."""
        self.redelivered_up_to = redelivered_up_to
        """Messages below this offset may have been given out before."""
        self.hungry = True
        self.prefetch = 0
        self.unsettled = 0
        self.excused = 0
        """How many unsettled messages do not count against the prefetch."""
        self.mean = 0
        self.seen = False
        """Whether a subscription reads this partition now."""

    def begin(self, prefetch: int) -> None:
        """Begin on a new channel, which gives out again what is not settled."""
        self.redelivered_up_to = max(self.redelivered_up_to, self.next)
        self.next = self.window.floor
        self.prefetch = prefetch
        self.unsettled = self.excused = 0
        self.hungry = True
        self.seen = True

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""
        return self.prefetch - self.unsettled + self.excused

    def ask_for(self, room: int) -> int:
        """Return how many messages to fetch, so that they fit."""
        if not self.mean:
            return min(self.credit, FIRST_POLL)
        return max(1, min(self.credit, MOST, min(room, POLL_BYTES) // (self.mean + OVERHEAD)))

    def note_sizes(self, count: int, size: int) -> None:
        """Update the mean size of messages; at once if they become larger."""
        mean = size // count
        self.mean = max(1, mean, (3 * self.mean + mean) // 4)
