"""The callers' messages that the broker has not confirmed: those waiting, and those sent."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from tenantry.broker.port import BrokerError, Outgoing, UnroutableError

MAX_UNCONFIRMED: Final = 5_000
MAX_UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024
"""The most that may be in flight to the broker at once; the rest waits here, with its callers."""

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

IN_A_ROW: Final = 20
"""Messages of one exchange that are sent before it is another's turn."""

LARGE: Final = 16 * 1024
"""A message counts as one, and as one more for each so many bytes of its body."""

_MANY_RETURNS: Final = 1_000

_Key: TypeAlias = tuple[str, str, str | None]
"""Exchange, routing key, message id."""


class Batch:
    """The messages of one call, and whether all are confirmed. `done` is set once, for good."""

    __slots__ = ("_left", "_unsent", "abandoned", "done", "error", "exchange")

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.exchange = messages[0].exchange
        """The exchange whose turns it uses: all messages of a call go to one exchange."""
        self._unsent = deque(messages)
        self._left = len(messages)
        self.done = threading.Event()
        self.error: BrokerError | None = None
        self.abandoned = False

    @property
    def wanted(self) -> bool:
        """Whether the caller still waits."""
        return not self.abandoned and not self.done.is_set()

    def next_unsent(self) -> Outgoing | None:
        """Take the next message to send; None if there is none, or the caller waits no more."""
        if not self.wanted or not self._unsent:
            return None
        return self._unsent.popleft()

    def send_again(self, messages: Iterable[Outgoing]) -> None:
        """Put back messages that were sent and lost, before those not sent yet."""
        self._unsent.extendleft(reversed(list(messages)))

    def confirmed(self) -> None:
        """Count a message as confirmed by the broker."""
        self._left -= 1
        if self._left == 0:
            self.done.set()

    def fail(self, error: BrokerError) -> None:
        """End the call with an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Waiting:
    """Calls with messages to send. Exchanges take turns, and so do tenants.

    However much one exchange's callers publish, another's message goes out after a few of theirs.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[str, deque[Batch]] = OrderedDict()
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[Batch]:
        for calls in self._calls.values():
            yield from calls

    def add(self, batch: Batch) -> None:
        """Queue a call behind those before it to the same exchange."""
        self._calls.setdefault(batch.exchange, deque()).append(batch)

    def put_first(self, batch: Batch) -> None:
        """Queue a call before the others to its exchange, unless it waits already."""
        calls = self._calls.setdefault(batch.exchange, deque())
        if batch not in calls:
            calls.appendleft(batch)

    def next(self, is_full: Callable[[str], bool]) -> tuple[Batch, Outgoing] | None:
        """Take the next message to send; none to an exchange that is full."""
        # One more round for the exchange that has just had its turn: it may be the only one.
        for _ in range(len(self._calls) + 1):
            if not self._calls:
                break
            exchange, calls = next(iter(self._calls.items()))
            if self._in_a_row < IN_A_ROW and not is_full(exchange):
                while calls:
                    batch = calls[0]
                    if (message := batch.next_unsent()) is not None:
                        self._in_a_row += 1 + len(message.body) // LARGE
                        return batch, message
                    calls.popleft()
            self._in_a_row = 0
            if calls:
                self._calls.move_to_end(exchange)
            else:
                del self._calls[exchange]
        return None

    def forget_abandoned(self) -> None:
        """Drop the calls whose callers do not wait any more."""
        for exchange, calls in list(self._calls.items()):
            left = deque(batch for batch in calls if not batch.abandoned)
            if left:
                self._calls[exchange] = left
            else:
                del self._calls[exchange]

    def clear(self) -> None:
        """Drop all calls."""
        self._calls.clear()


class _Sent(NamedTuple):
    batch: Batch
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


class Unconfirmed:
    """One channel's messages by their sequence number, from 1, as the broker counts them too."""

    def __init__(self) -> None:
        self._sent: dict[int, _Sent] = {}
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

    def sent(self, batch: Batch, message: Outgoing, now: float = 0.0) -> None:
        """Record a message that was just sent."""
        self._sent[self._next] = _Sent(batch, message, now)
        self._now = now
        if batch.exchange != self._latest:
            if self._latest:
                self._changed_at = now
            self._latest = batch.exchange
        self._next += 1
        size = len(message.body)
        self.bytes += size
        share = self._shares.get(batch.exchange)
        if share is None:
            share = self._shares[batch.exchange] = _Share()
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
    ) -> None:
        """Record the broker's answer to a message, or to all up to it: confirmed, or refused."""
        self._now = max(self._now, now)
        for one in range(self._oldest, tag + 1) if multiple else (tag,):
            sent = self._sent.pop(one, None)
            if sent is None:
                continue
            batch, message, at = sent
            self._arrived(batch.exchange, len(message.body), now - at)
            if refusal is not None:
                batch.fail(refusal())
            elif self._returned and self._was_returned(one, message):
                batch.fail(
                    UnroutableError(
                        f"no queue of {message.exchange!r} takes the key {message.routing_key!r}"
                    )
                )
            else:
                batch.confirmed()
        if multiple:
            self._oldest = max(self._oldest, tag + 1)
        if not self._sent:
            self._oldest = self._next
            self._returned.clear()

    def _arrived(self, exchange: str, size: int, delay: float) -> None:
        self.bytes -= size
        share = self._shares[exchange]
        share.delay = delay
        share.count -= 1
        share.bytes -= size
        if not share.count:
            del self._shares[exchange]

    def batches(self) -> list[Batch]:
        """List the calls with an unconfirmed message, in the order of sending."""
        return list(dict.fromkeys(sent.batch for sent in self._sent.values()))

    def exchanges(self) -> set[tuple[Batch, str]]:
        """List the calls with an unconfirmed message, each with the exchanges it uses."""
        return {(batch, message.exchange) for batch, message, _ in self._sent.values()}

    def lose_channel(self) -> list[Batch]:
        """Start over for a new channel; return the calls whose messages must be sent again."""
        lost: dict[Batch, list[Outgoing]] = {}
        for batch, message, _ in self._sent.values():
            if batch.wanted:
                lost.setdefault(batch, []).append(message)
        for batch, messages in lost.items():
            batch.send_again(messages)
        self._sent.clear()
        self._shares.clear()
        self._returned.clear()
        self._oldest = self._next = 1
        self.bytes = 0
        return list(lost)

    def _was_returned(self, number: int, message: Outgoing) -> bool:
        key = (message.exchange, message.routing_key, message.message_id)
        return number <= self._returned.get(key, 0)

    def _forget_returns(self) -> None:
        oldest = min(self._sent, default=self._next)
        self._returned = {key: last for key, last in self._returned.items() if last >= oldest}
