"""A fair queue: which client gets the next turn at a scarce resource, by weight and past use."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

_Item = TypeVar("_Item")

_NEW_SHARE: Final = 0.2
"""How much of the latest turn goes into the moving average of what a client's turns cost."""

_GUESS: Final = 0.01
"""The assumed cost of a client's first turn."""

LEAD: Final = 3
"""How many turns of its own an expected client may have had less before others wait for it."""

_MANY_AWAY: Final = 1000


@dataclass(slots=True, kw_only=True)
class _Client(Generic[_Item]):
    """A client with turns, or waiting for some."""

    finish: float
    """The virtual time up to which the client has used its share."""
    weight: float = 1.0
    usual: float = _GUESS
    """The moving average of what its turns cost."""
    running: int = 0
    waiting: deque[_Item] = field(default_factory=deque)
    queued_at: float | None = None
    """The `finish` under which the client is queued; None while it is not queued."""

    @property
    def lead(self) -> float:
        """The virtual time by which others may be ahead of the client while it is expected."""
        return LEAD * self.usual / self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class _Away:
    """What is remembered of a client without turns that waits for none."""

    finish: float
    behind: float
    """The virtual time by which it may be behind the present one when it returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Generic[_Item]):
    """A turn that a client has; it ends with `FairQueue.ended`."""

    client: str
    item: _Item
    charged: float


class FairQueue(Generic[_Item]):
    """Start-time fair queueing: the client with the least use per weight is next.

    The cost of a turn, in seconds or in another shared unit, is known only at its end; until then
    the client is charged its average. A client has at most `most_of_one` turns at once, so that
    long turns leave room for other clients. An idle client saves up nothing, and a client that
    leaves and returns at once gains nothing. A client that is expected to return keeps its place:
    those that have had more wait for it, `LEAD` of its turns at the soonest, since if all waited
    for whoever has had the least, little would be under way. One that is no longer expected, but
    returns, has at most as much to make up for. The queue reads no clock, and is used by one thread
    at a time.
    """

    def __init__(self, *, most_of_one: int) -> None:
        self._most_of_one = most_of_one
        self._clients: dict[str, _Client[_Item]] = {}
        self._away: dict[str, _Away] = {}
        """Clients that have had more than others, or that were expected."""
        self._expected: dict[str, _Client[_Item]] = {}
        """Clients that keep their places, also without a turn, as they will soon wait for one."""
        self._order: list[tuple[float, int, str]] = []
        """Waiting clients that may have a turn, a heap by `finish`; some entries are outdated."""
        self._number = 0
        self._now = 0.0
        """The virtual time: when the latest turn began."""
        self.waiting = 0
        self.held: _Item | None = None
        """What `next` did not give a turn, as a client is expected that has had much less."""

    def waiting_of(self, client: str) -> int:
        """Tell for how many turns a client waits."""
        known = self._clients.get(client)
        return 0 if known is None else len(known.waiting)

    def may_have_one_more(self, client: str) -> bool:
        """Tell whether a client has fewer turns than one may have at once."""
        known = self._clients.get(client)
        return known is None or known.running < self._most_of_one

    def add(self, client: str, weight: float, item: _Item) -> None:
        """Have a client wait for one more turn."""
        known = self._clients.get(client)
        if known is None:
            away = self._away.pop(client, None)
            finish = self._now if away is None else max(self._now - away.behind, away.finish)
            known = self._clients[client] = _Client(finish=finish)
        known.weight = weight
        known.waiting.append(item)
        self.waiting += 1
        self._queue(client, known)

    def remove(self, client: str, item: _Item) -> None:
        """Have a client no longer wait for a turn, unless it has got it."""
        known = self._clients.get(client)
        if known is not None and item in known.waiting:
            known.waiting.remove(item)
            self.waiting -= 1
            self._leave(client)

    def expect(self, client: str) -> None:
        """Have a client that has a turn keep its place until it waits for another one."""
        self._expected[client] = self._clients[client]

    def expect_no_more(self, client: str) -> None:
        """Have a client keep its place no longer."""
        known = self._expected.pop(client, None)
        if known is not None:
            self._leave(client, behind=known.lead)

    def next(self) -> Grant[_Item] | None:
        """Give the next turn; None where no waiting client may have one."""
        self.held = None
        order, clients = self._order, self._clients
        while order:
            begin, _, name = heapq.heappop(order)
            client = clients.get(name)
            if client is None or client.queued_at != begin:
                continue
            client.queued_at = None
            if client.finish != begin:
                self._queue(name, client)
            elif client.waiting and client.running < self._most_of_one:
                if not self._one_before(begin):
                    return self._begin(name, client)
                self._queue(name, client)
                self.held = client.waiting[0]
                return None
        return None

    def _one_before(self, finish: float) -> bool:
        """Tell whether a client is expected that has had less than this by more than its lead."""
        return any(
            one.finish + one.lead < finish and not one.waiting for one in self._expected.values()
        )

    def next_of(self, name: str) -> Grant[_Item] | None:
        """Give a client's next turn out of order; not if it has one, or has had its share.

        For short turns beside long ones: a client that seldom asks does not wait for those to end.
        """
        client = self._clients.get(name)
        if client is None or not client.waiting or client.running or client.finish > self._now:
            return None
        return self._begin(name, client)

    def _begin(self, name: str, client: _Client[_Item]) -> Grant[_Item]:
        self._now = max(self._now, client.finish)
        charged = client.usual / client.weight
        client.finish += charged
        client.running += 1
        self.waiting -= 1
        grant = Grant(client=name, item=client.waiting.popleft(), charged=charged)
        self._queue(name, client)
        return grant

    def _queue(self, name: str, client: _Client[_Item]) -> None:
        """Queue a client if it may have a turn.

        An entry that is outdated, as the client's `finish` has grown, is requeued by `next`.
        """
        if not client.waiting or client.running >= self._most_of_one:
            return
        if client.queued_at is None or client.finish < client.queued_at:
            client.queued_at = client.finish
            self._number += 1
            heapq.heappush(self._order, (client.finish, self._number, name))

    def ended(self, grant: Grant[_Item], taken: float) -> None:
        """End a turn and charge its real cost, in seconds for example."""
        client = self._clients[grant.client]
        client.running -= 1
        client.finish += taken / client.weight - grant.charged
        client.usual += (taken - client.usual) * _NEW_SHARE
        self._queue(grant.client, client)
        self._leave(grant.client)

    def unused(self, grant: Grant[_Item]) -> None:
        """Take back a turn whose client no longer wants it, without a charge."""
        client = self._clients[grant.client]
        client.running -= 1
        client.finish -= grant.charged
        self._queue(grant.client, client)
        self._leave(grant.client)

    def _leave(self, name: str, *, behind: float = 0.0) -> None:
        client = self._clients[name]
        if client.waiting or client.running or name in self._expected:
            return
        del self._clients[name]
        if not self._clients:
            self._away.clear()
            self._order.clear()
        elif client.finish > self._now - behind:
            self._away[name] = _Away(finish=client.finish, behind=behind)
            if len(self._away) > _MANY_AWAY:
                self._away = {
                    one: away
                    for one, away in self._away.items()
                    if away.finish > self._now - away.behind
                }
