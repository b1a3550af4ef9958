"""Messages that were sent and the broker has not confirmed: how many, and their owners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from tenantry.broker.port import BrokerError, Outgoing, UnroutableError

MAX_UNCONFIRMED: Final = 5_000
MAX_UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024
"""The most that may be in flight to the broker at once; the rest waits with its callers."""

MAX_OF_ONE: Final = 0.75
"""The largest part of both that one exchange may use: one of its queues may not confirm, and the
other exchanges still have room."""

LONGEST_DELAY: Final = 0.1
"""Seconds until a confirm beyond which no more than `ENOUGH` of an exchange is in flight.

The broker handles the messages in flight before the next one of any exchange. The limit holds while
more than one exchange is in use: a distant broker takes long, too.
"""

IN_USE: Final = 10.0
"""Seconds for which an exchange counts as in use after a message to it."""

ENOUGH: Final = 250
ENOUGH_BYTES: Final = 2 * 1024 * 1024

_MANY_RETURNS: Final = 1_000

_Key: TypeAlias = tuple[str, str, str | None]
"""Exchange, routing key, message id."""

_Owner = TypeVar("_Owner")
"""The call that a message belongs to."""


class _Sent(NamedTuple, Generic[_Owner]):
    owner: _Owner
    message: Outgoing
    at: float


class _Share:
    """One exchange's part of the messages in flight."""

    __slots__ = ("bytes", "count", "delay")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.delay = 0.0
        """Seconds that the latest confirm took."""


class Unconfirmed(Generic[_Owner]):
    """One channel's messages by their sequence number, from 1, as the broker counts them too."""

    def __init__(self) -> None:
        self._sent: dict[int, _Sent[_Owner]] = {}
        self._oldest = 1
        self._next = 1
        self._returned: dict[_Key, int] = {}
        self._shares: dict[str, _Share] = {}
        self._latest = ""
        """The exchange of the latest message."""
        self._changed_at = -IN_USE
        """When a message last went to another exchange than the one before."""
        self._now = 0.0
        self.bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether more may be sent."""
        return len(self._sent) < MAX_UNCONFIRMED and self.bytes < MAX_UNCONFIRMED_BYTES

    def has_its_share(self, exchange: str) -> bool:
        """Return whether an exchange has as much in flight as one exchange may have."""
        share = self._shares.get(exchange)
        return share is not None and (
            share.count >= MAX_UNCONFIRMED * MAX_OF_ONE
            or share.bytes >= MAX_UNCONFIRMED_BYTES * MAX_OF_ONE
            or (
                (share.count >= ENOUGH or share.bytes >= ENOUGH_BYTES)
                and share.delay > LONGEST_DELAY
                and self._now - self._changed_at < IN_USE
            )
        )

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, owner: _Owner, message: Outgoing, now: float = 0.0) -> None:
        """Record a message that was just sent."""
        self._sent[self._next] = _Sent(owner, message, now)
        self._now = now
        exchange = message.exchange
        if exchange != self._latest:
            if self._latest:
                self._changed_at = now
            self._latest = exchange
        self._next += 1
        size = len(message.body)
        self.bytes += size
        share = self._shares.get(exchange)
        if share is None:
            share = self._shares[exchange] = _Share()
        share.count += 1
        share.bytes += size

    def returned(self, exchange: str, routing_key: str, message_id: str | None) -> None:
        """Record that the broker returned a message, which it confirms nevertheless.

        A return names no sequence number. So every message sent so far that looks the same counts
        as returned: an error for one message too many is harmless, one too few would lose a
        message.
        """
        self._returned[exchange, routing_key, message_id] = self._next - 1
        if len(self._returned) > _MANY_RETURNS:
            self._forget_returns()

    def settle(
        self,
        tag: int,
        *,
        multiple: bool,
        refusal: Callable[[], BrokerError] | None,
        now: float = 0.0,
    ) -> list[tuple[_Owner, BrokerError | None]]:
        """Record the broker's answer to a message, or to all up to it: confirmed, or refused.

        Returns the owner of each of them, with an error if it was refused or returned.
        """
        answered: list[tuple[_Owner, BrokerError | None]] = []
        self._now = max(self._now, now)
        for one in range(self._oldest, tag + 1) if multiple else (tag,):
            sent = self._sent.pop(one, None)
            if sent is None:
                continue
            owner, message, at = sent
            self._arrived(message.exchange, len(message.body), now - at)
            error: BrokerError | None = None
            if refusal is not None:
                error = refusal()
            elif self._returned and self._was_returned(one, message):
                error = UnroutableError(
                    f"no queue of {message.exchange!r} takes the key {message.routing_key!r}"
                )
            answered.append((owner, error))
        if multiple:
            self._oldest = max(self._oldest, tag + 1)
        if not self._sent:
            self._oldest = self._next
            self._returned.clear()
        return answered

    def _arrived(self, exchange: str, size: int, delay: float) -> None:
        self.bytes -= size
        share = self._shares[exchange]
        share.delay = delay
        share.count -= 1
        share.bytes -= size
        if not share.count:
            del self._shares[exchange]

    def exchanges(self) -> set[tuple[_Owner, str]]:
        """List the owners of unconfirmed messages, each with the exchanges it uses."""
        return {(owner, message.exchange) for owner, message, _ in self._sent.values()}

    def lose_channel(self) -> dict[_Owner, list[Outgoing]]:
        """Start over for a new channel; return the lost messages by owner, in their order."""
        lost: dict[_Owner, list[Outgoing]] = {}
        for owner, message, _ in self._sent.values():
            lost.setdefault(owner, []).append(message)
        self._sent.clear()
        self._shares.clear()
        self._returned.clear()
        self._oldest = self._next = 1
        self.bytes = 0
        return lost

    def _was_returned(self, number: int, message: Outgoing) -> bool:
        key = (message.exchange, message.routing_key, message.message_id)
        return number <= self._returned.get(key, 0)

    def _forget_returns(self) -> None:
        oldest = min(self._sent, default=self._next)
        self._returned = {key: last for key, last in self._returned.items() if last >= oldest}
