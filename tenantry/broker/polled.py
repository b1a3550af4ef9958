"""Consuming by polling: one thread reads the queues of many tenants.

RabbitMQ pushes deliveries on channels. The embedded broker and Iggy must be asked for messages: a
reader fetches for all tenants and gives the messages out on channels of its own making. This module
holds what the two readers have in common, and their channels.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog

from tenantry import failpoints
from tenantry.broker.budget import Account, Budget
from tenantry.broker.port import DeliverySink, QueueSpec
from tenantry.database.failures import one_line
from tenantry.loops import Heartbeat, ThreadWakeup

log = structlog.get_logger(__name__)

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 3.0
"""Seconds between attempts to connect."""


class HeldQueue(Protocol):
    """A queue that is read here, as its reader knows it."""

    hungry: bool
    """Whether the queue may have messages that were not given out."""
    unsettled: int

    @property
    def credit(self) -> int:
        """How many more deliveries the prefetch allows."""


class Reader(Protocol):
    """What a channel asks of the reader that serves it."""

    def call(self, job: Callable[[], None]) -> None:
        """Run `job` on the reader's thread; on the caller's, at once, if that thread has ended."""

    def seek(self, subscription: Any) -> None:
        """Try to take its queues, from `retry_at` on, until it holds or drops them."""

    def forget(self, subscription: Any) -> None:
        """Ignore the subscription from now on."""


H = TypeVar("H", bound=HeldQueue)
R = TypeVar("R", bound=Reader)


class PolledSubscription(ABC, Generic[H, R]):
    """One tenant's channel (`tenantry.broker.port.Subscription`), with its generations and credit.

    Its fields belong to the reader's thread; the public calls are passed to that thread.
    """

    def __init__(
        self,
        reader: R,
        queues: Sequence[QueueSpec],
        *,
        prefetch: int,
        sink: DeliverySink,
        budget: Budget,
    ) -> None:
        self.queues: Final = tuple(queues)
        self.prefetch: Final = prefetch
        self.account: Final = Account(budget)
        self.held: tuple[H, ...] = ()
        """The queues while they are read here; empty otherwise."""
        self.retry_at = 0.0
        """When the reader tries next to take the queues."""
        self._reader = reader
        self._sink = sink
        self._budget = budget
        self._found_no_room_at = -1
        """The value of `Budget.freed` when a message last found no room; -1 if there was room."""
        self._generation = 0
        self._tag = 0
        self._open = False
        self._wanted = True
        self._missing = False

    # From any thread.

    @property
    def window(self) -> int:
        """See `Subscription.window`."""
        return self.prefetch

    def settle(
        self,
        generation: int,
        *,
        rejects: Sequence[int] = (),
        acks: Sequence[int] = (),
        ack_up_to: int | None = None,
    ) -> None:
        """Reject `rejects`, ack `acks`, then ack all others up to a tag."""
        settle = partial(self._settle, generation, tuple(rejects), tuple(acks), ack_up_to)
        self._reader.call(settle)

    def renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        """Stop counting a queue's unsettled deliveries against its prefetch."""
        self._reader.call(partial(self._renew_prefetch, generation, queue))

    def cancel(self) -> None:
        """Stop deliveries; the sink hears `cancelled`."""
        self._reader.call(self._cancel)

    def resubscribe(self) -> None:
        """Consume again, on a new channel."""
        self._reader.call(self._resubscribe)

    def close(self) -> None:
        """Release the queues, with their unsettled messages; call the sink no more."""
        self._reader.call(self._close)

    # On the reader's thread.

    @property
    def waits(self) -> bool:
        """Whether the queues are wanted and not held."""
        return self._wanted and not self._missing and not self._open

    @property
    def consumes(self) -> bool:
        """Whether messages are given out."""
        return self._wanted and self._open

    def hungry(self) -> list[H]:
        """Return the queues that may have messages, and have credit.

        Queues with the fewest unsettled deliveries come first: the room may not do for all queues.
        """
        if not self.consumes:
            return []
        found = [one for one in self.held if one.hungry and one.credit > 0]
        found.sort(key=attrgetter("unsettled"))
        return found

    def has_room(self) -> bool:
        """Return whether more bytes may come; if not, the next settlement wakes the reader."""
        return self.account.room > 0 and self._found_no_room_at != self._budget.freed

    def found_room(self, *, found: bool = True) -> None:
        """Record whether a message found room; if not, nothing is fetched until bytes are freed."""
        self._found_no_room_at = -1 if found else self._budget.freed

    def opened(self, held: Sequence[H]) -> None:
        """Begin a new channel on queues that are held now."""
        self._generation += 1
        self._tag = 0
        self.held = tuple(held)
        self._open = True
        self._sink.consuming(self._generation)

    def absent(self, reason: str) -> None:
        """Record that a queue does not exist: nothing is consumed until `resubscribe`."""
        self._generation += 1
        self._missing = True
        self._sink.lost(self._generation, reason, missing=True)

    def silent(self) -> None:
        """Tell the sink that the queues exist and can't be taken."""
        self._sink.silent([one.name for one in self.queues])

    def lose(self, reason: str, *, missing: bool) -> None:
        """Drop the channel and everything unsettled on it."""
        if not self._open:
            return
        self._shut()
        self._missing = missing
        self._reader.seek(self)
        self._sink.lost(self._generation, reason, missing=missing)

    @abstractmethod
    def _settle_tags(
        self, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        """Reject and ack deliveries of this channel; settled ones are ignored."""

    @abstractmethod
    def _excuse(self, queue: QueueSpec) -> None:
        """Stop counting a queue's unsettled deliveries against its prefetch."""

    def _shut(self) -> None:
        """Forget the unsettled deliveries, and hold no queue."""
        self._open = False
        self.held = ()
        self.account.clear()
        self.found_room()

    def _give_back(self, held: Sequence[H]) -> None:
        """Release the given-up queues to other readers."""

    def _settle(
        self, generation: int, rejects: Sequence[int], acks: Sequence[int], ack_up_to: int | None
    ) -> None:
        if generation != self._generation or not self._open:
            return
        failpoints.reach("before_ack")
        self._settle_tags(rejects, acks, ack_up_to)
        self.account.settle(rejects, acks, ack_up_to)
        failpoints.reach("after_ack")

    def _renew_prefetch(self, generation: int, queue: QueueSpec) -> None:
        if generation == self._generation and self.consumes:
            self._excuse(queue)

    def _cancel(self) -> None:
        self._wanted = False
        self._sink.cancelled(self._generation)

    def _resubscribe(self) -> None:
        self._wanted = True
        self._missing = False
        held = self.held
        self.lose("consuming begins again", missing=False)
        self._give_back(held)
        self.retry_at = 0.0
        self._reader.seek(self)

    def _close(self) -> None:
        self._wanted = False
        held = self.held
        self._shut()
        self._reader.forget(self)
        self._give_back(held)


T = TypeVar("T")
S = TypeVar("S", bound=PolledSubscription[Any, Any])


class PolledConsuming(ABC, Generic[S]):
    """All subscriptions (`tenantry.broker.port.Consuming`). `run` and `stop` are the owner's."""

    outages: tuple[type[Exception], ...]
    """The exceptions raised when the connection is lost or can't be made."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.heartbeat: Final = Heartbeat()
        self._budget: Final = budget or Budget()
        self._wakeup: Final = ThreadWakeup()
        self._jobs: deque[Callable[[], None]] = deque()
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._ended = False
        # Fields of the thread that runs.
        self._subscriptions: dict[S, None] = {}
        self._seeking: dict[S, None] = {}
        """The subscriptions whose queues are still to be taken; only these are tried."""
        self._connections = 0
        self._failures = 0

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the broker can be reached now."""

    @property
    def reconnects(self) -> int:
        """How often the connection was opened again after it had been lost."""
        return max(0, self._connections - 1)

    def subscribe(self, queues: Sequence[QueueSpec], *, prefetch: int, sink: DeliverySink) -> S:
        """Consume `queues`, now or as soon as they can be taken."""
        subscription = self._subscription(queues, prefetch, sink)
        self.call(partial(self._add, subscription))
        return subscription

    def run(self) -> None:
        """Serve every subscription until `stop`; belongs on a thread of its own."""
        while not self._stopping.is_set():
            try:
                self._serve()
            except self.outages as error:
                self._disconnected(one_line(error))
            except Exception as error:
                # A bug of ours with one tenant's queue must not stop all tenants: connect anew.
                log.exception("broker.loop_failed")
                self._disconnected(one_line(error))
            self._wait_away()
        with self._guard:
            self._ended = True
        self._work_off()

    def stop(self) -> None:
        """Release every queue to other readers and end `run`."""
        self._stopping.set()
        self._wakeup.set()

    # For subscriptions.

    def call(self, job: Callable[[], None]) -> None:
        """Run `job` on the thread; on the caller's, at once, if that thread has ended."""
        with self._guard:
            if not self._ended:
                self._jobs.append(job)
                self._wakeup.set()
                return
        job()

    def seek(self, subscription: S) -> None:
        """Try to take a subscription's queues from now on, each time it is due."""
        self._seeking[subscription] = None

    def forget(self, subscription: S) -> None:
        """Ignore a subscription from now on."""
        self._subscriptions.pop(subscription, None)
        self._seeking.pop(subscription, None)

    # The thread.

    def _add(self, subscription: S) -> None:
        self._subscriptions[subscription] = None
        self.seek(subscription)

    @abstractmethod
    def _subscription(self, queues: Sequence[QueueSpec], prefetch: int, sink: DeliverySink) -> S:
        """Make a channel."""

    @abstractmethod
    def _serve(self) -> None:
        """Connect, and serve every subscription until `stop`, or until the connection is lost."""

    def _note_connected(self) -> None:
        self._connections += 1
        self._failures = 0
        log.info("broker.connected", connection="tenantry consuming")

    def _waiting(self, now: float) -> Iterator[S]:
        """Yield the subscriptions whose queues are to be tried now."""
        for subscription in tuple(self._seeking):
            if not subscription.waits:
                del self._seeking[subscription]
            elif now >= subscription.retry_at:
                yield subscription

    def _all_find_room(self) -> None:
        """Let every subscription fetch again, whether its last message found room or not."""
        for subscription in self._subscriptions:
            subscription.found_room()

    def _take_turns(self) -> None:
        """If room is scarce, let another subscription be served first the next time."""
        if self._budget.crowded and self._subscriptions:
            move_first_to_end(self._subscriptions)

    def _work_off(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _wait_away(self) -> None:
        """Wait until the next attempt to connect, and run the jobs that arrive meanwhile."""
        if self._stopping.is_set():
            return
        ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures, 8))
        until = time.monotonic() + ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            self.heartbeat.beat()
            self._wakeup.wait(None, left)
            self._wakeup.clear()
            self._work_off()

    def _disconnected(self, reason: str) -> None:
        if not self._failures:
            log.warning("broker.connection_lost", connection="tenantry consuming", error=reason)
        for subscription in tuple(self._subscriptions):
            subscription.lose(reason, missing=False)


def move_first_to_end(those: dict[T, None]) -> None:
    """Move the first key to the end, so that all others have their turn before it."""
    first = next(iter(those))
    del those[first]
    those[first] = None
