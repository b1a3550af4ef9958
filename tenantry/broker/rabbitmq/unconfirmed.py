"""What has been sent to the broker and not been answered yet."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from tenantry.broker.port import BrokerError, Outgoing, UnroutableError

_MANY_RETURNS: Final = 1_000

_Key: TypeAlias = tuple[str, str, str | None]


class Batch:
    """The messages of one call, and whether all are confirmed. `done` is set once, for good.

    The caller waits for `done`; everything else but `abandoned` belongs to the loop's thread.
    """

    __slots__ = ("_left", "_unsent", "abandoned", "done", "error")

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self._unsent = deque(messages)
        self._left = len(messages)
        self.done = threading.Event()
        self.error: BrokerError | None = None
        self.abandoned = False

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.abandoned and not self.done.is_set()

    def next_unsent(self) -> Outgoing | None:
        """Take the next message to send; None if there is none, or nobody waits any more."""
        if not self.wanted or not self._unsent:
            return None
        return self._unsent.popleft()

    def send_again(self, messages: Iterable[Outgoing]) -> None:
        """Put back messages that were sent and lost, before those not sent yet."""
        self._unsent.extendleft(reversed(list(messages)))

    def confirmed(self) -> None:
        """Count a message as taken by the broker."""
        self._left -= 1
        if self._left == 0:
            self.done.set()

    def fail(self, error: BrokerError) -> None:
        """End the call with an error, unless it has ended."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class _Sent(NamedTuple):
    batch: Batch
    message: Outgoing


class Unconfirmed:
    """One channel's messages by their sequence number, from 1, as the broker counts them too."""

    def __init__(self) -> None:
        self._sent: dict[int, _Sent] = {}
        self._oldest = 1
        self._next = 1
        self._returned: dict[_Key, int] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, batch: Batch, message: Outgoing) -> None:
        """Note a message that was sent just now."""
        self._sent[self._next] = _Sent(batch, message)
        self._next += 1
        self.bytes += len(message.body)

    def returned(self, exchange: str, routing_key: str, message_id: str | None) -> None:
        """Note that the broker gave a message back, which it then confirms nevertheless.

        A return names no sequence number. Every message sent so far that looks the same counts
        as returned: to say so of one too many is harmless, of one too few would lose it.
        """
        self._returned[exchange, routing_key, message_id] = self._next - 1
        if len(self._returned) > _MANY_RETURNS:
            self._forget_returns()

    def settle(
        self, tag: int, *, multiple: bool, refusal: Callable[[], BrokerError] | None
    ) -> None:
        """Note the broker's answer to a message, or to all up to it: taken, or refused."""
        for one in range(self._oldest, tag + 1) if multiple else (tag,):
            sent = self._sent.pop(one, None)
            if sent is None:
                continue
            batch, message = sent
            self.bytes -= len(message.body)
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

    def batches(self) -> list[Batch]:
        """List the calls some message of which is unconfirmed, in the order they were sent."""
        return list(dict.fromkeys(sent.batch for sent in self._sent.values()))

    def exchanges(self) -> set[tuple[Batch, str]]:
        """List the calls some message of which is unconfirmed, each with the exchanges it uses."""
        return {(batch, message.exchange) for batch, message in self._sent.values()}

    def lose_channel(self) -> list[Batch]:
        """Begin anew, as a new channel does; give the calls whose messages must be sent again."""
        lost: dict[Batch, list[Outgoing]] = {}
        for batch, message in self._sent.values():
            if batch.wanted:
                lost.setdefault(batch, []).append(message)
        for batch, messages in lost.items():
            batch.send_again(messages)
        self._sent.clear()
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
