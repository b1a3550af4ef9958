"""A partition that is consumed: how far it was read, given out and settled."""

from __future__ import annotations

from typing import Final

from tenantry.broker.budget import OVERHEAD
from tenantry.broker.iggy.offsets import OffsetWindow
from tenantry.broker.iggy.topology import Place, place_of
from tenantry.broker.port import QueueSpec

FIRST_POLL: Final = 32
"""Messages asked for before it is known how large they are."""

MOST: Final = 1000
"""Messages asked for at once."""

POLL_BYTES: Final = 8 * 1024 * 1024
"""How large an answer may be, if messages are as large as those before."""


class Partition:
    """What this process knows of a partition, for as long as its topic is the same.

    It belongs to the thread that reads. A subscription that ends leaves it as it is: what was
    settled stays so for the next one.
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
        """When its topic was made, in microseconds: which of those that had the name."""
        self.window = OffsetWindow(floor)
        self.stored = floor
        """The floor that the server knows of."""
        self.next = floor
        """The offset to be read next."""
        self.redelivered_up_to = redelivered_up_to
        """Below this offset all may have been given out before."""
        self.hungry = True
        self.prefetch = 0
        self.unsettled = 0
        self.excused = 0
        """How many of them do not count against the prefetch."""
        self.mean = 0
        self.seen = False
        """Whether it is among what a subscription reads."""

    def begin(self, prefetch: int) -> None:
        """Give out again what is not settled: the channel is another."""
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
        """Tell how many messages to ask for, so that they fit."""
        if not self.mean:
            return min(self.credit, FIRST_POLL)
        return max(1, min(self.credit, MOST, min(room, POLL_BYTES) // (self.mean + OVERHEAD)))

    def note_sizes(self, count: int, size: int) -> None:
        """Learn how large messages are; quickly, where they become larger."""
        mean = size // count
        self.mean = max(1, mean, (3 * self.mean + mean) // 4)
