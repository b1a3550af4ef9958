"""A dead letter in a walk's hands: the message as the queue has it, and what the index knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tenantry.broker.port import QueuedDeadLetter
from tenantry.dead_letters.port import KnownDeadLetter, QueueMessage, RejectedMessage, Work
from tenantry.domain.events import MessageDeadLettered
from tenantry.messages.port import Incoming
from tenantry.messages.validation import shown

_WHY: Final = {
    "rejected": "rejected by another consumer than the daemon",
    "expired": "its time to live ended before it was stored",
    "maxlen": "its queue was full",
    "delivery_limit": "delivered again more often than its queue allows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message in the queue, by its place in the batch, and its letter."""

    place: int
    met: KnownDeadLetter
    queued: QueuedDeadLetter

    @property
    def message(self) -> Incoming:
        """The message itself."""
        return self.queued.message

    def begun(self, work: Work) -> Letter:
        """Give the letter as it is once work on it is begun."""
        return replace(
            self, met=self.met._replace(replays=self.met.replays + (work is Work.REPLAY))
        )


def found(queued: QueuedDeadLetter) -> QueueMessage:
    """Say of a message in the queue what is said of it if nobody knows it."""
    why = _WHY.get(queued.reason, f"dead-lettered by the broker: {queued.reason}")
    return QueueMessage(RejectedMessage(queued.message, queued.reason, why, 0), queued.died_at)


def told(tenant_id: str, letter: Letter) -> MessageDeadLettered:
    """Make the event of a letter that only the broker knew of."""
    message, met = letter.message, letter.met
    return MessageDeadLettered(
        tenant_id=tenant_id,
        message_id=shown(message.id),
        topic=message.topic,
        partition=message.partition,
        reason=met.reason,
        error=met.error,
        first_error=met.first_error or met.error,
        attempts=met.attempts,
        size=len(message.body),
    )


def describe(letters: Sequence[Letter]) -> Mapping[str, int]:
    """Count letters by their reason."""
    return dict(Counter(one.met.reason for one in letters))
