"""Who is next, where several want what there is too little of: by weight, and what each has had."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

_Item = TypeVar("_Item")

_NEW_SHARE: Final = 0.2
"""How much its latest turn changes what a client's turns usually take."""

_GUESS: Final = 0.01
"""What a client's first turn is taken to take."""

_MANY_AWAY: Final = 1000


@dataclass(slots=True, kw_only=True)
class _Client(Generic[_Item]):
    """A client with turns, or waiting for some."""

    finish: float
    """The virtual time up to which it has had its share."""
    weight: float = 1.0
    usual: float = _GUESS
    """What its turns usually take."""
    running: int = 0
    waiting: deque[_Item] = field(default_factory=deque)
    queued_at: float | None = None
    """The `finish` by which it stands in the queue, if it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Generic[_Item]):
    """A turn that a client has; it ends with `FairQueue.ended`."""

    client: str
    item: _Item
    charged: float


class FairQueue(Generic[_Item]):
    """Start-time fair queueing: who has had the least for its weight is next.

    What a turn takes, in seconds or in whatever else is shared, is known only when it has ended;
    until then it counts as what the client's turns usually take. One client has `most_of_one` turns
    at once at most, so that turns that take long leave room for others. Who was away has saved
    nothing, and who comes back at once has gained nothing. It looks at no clock, and belongs to one
    thread at a time.
    """

    def __init__(self, *, most_of_one: int) -> None:
        self._most_of_one = most_of_one
        self._clients: dict[str, _Client[_Item]] = {}
        self._away: dict[str, float] = {}
        """Up to when those have had their share who have none waiting: it may be in the future."""
        self._order: list[tuple[float, int, str]] = []
        """Those that wait and may have a turn, by `finish`; some by a former one, too."""
        self._number = 0
        self._now = 0.0
        """The virtual time: when the latest turn began."""
        self.waiting = 0

    def waiting_of(self, client: str) -> int:
        """Tell for how many turns a client waits."""
        known = self._clients.get(client)
        return 0 if known is None else len(known.waiting)

    def add(self, client: str, weight: float, item: _Item) -> None:
        """Have a client wait for one more turn."""
        known = self._clients.get(client)
        if known is None:
            finish = max(self._now, self._away.pop(client, 0.0))
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

    def next(self) -> Grant[_Item] | None:
        """Give the next turn; None where nobody waits who may have one."""
        order, clients = self._order, self._clients
        while order:
            begin, _, name = heapq.heappop(order)
            client = clients.get(name)
            if client is not None and client.queued_at == begin:
                client.queued_at = None
                if client.finish != begin:
                    self._queue(name, client)
                elif client.waiting and client.running < self._most_of_one:
                    return self._begin(name, client)
        return None

    def next_of(self, name: str) -> Grant[_Item] | None:
        """Give a client's next turn out of order; not if it has one, or has had its share.

        For short turns beside long ones: who seldom has any does not wait for the end of others'.
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
        """See that a client stands in the queue if it may have a turn.

        One that has moved back since is found out when it comes first.
        """
        if not client.waiting or client.running >= self._most_of_one:
            return
        if client.queued_at is None or client.finish < client.queued_at:
            client.queued_at = client.finish
            self._number += 1
            heapq.heappush(self._order, (client.finish, self._number, name))

    def ended(self, grant: Grant[_Item], taken: float) -> None:
        """Note that a turn has ended, and what it has taken: as many seconds, say."""
        client = self._clients[grant.client]
        client.running -= 1
        client.finish += taken / client.weight - grant.charged
        client.usual += (taken - client.usual) * _NEW_SHARE
        self._queue(grant.client, client)
        self._leave(grant.client)

    def unused(self, grant: Grant[_Item]) -> None:
        """Note that a turn was given to a client that wants it no more."""
        client = self._clients[grant.client]
        client.running -= 1
        client.finish -= grant.charged
        self._queue(grant.client, client)
        self._leave(grant.client)

    def _leave(self, name: str) -> None:
        client = self._clients[name]
        if client.waiting or client.running:
            return
        del self._clients[name]
        if not self._clients:
            self._away.clear()
            self._order.clear()
        elif client.finish > self._now:
            self._away[name] = client.finish
            if len(self._away) > _MANY_AWAY:
                self._away = {one: at for one, at in self._away.items() if at > self._now}
