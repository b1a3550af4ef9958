"""Blocking calls off the event loop, each kind of them in a bounded number of threads.

A kind of call that is stuck (commands while the broker is away, say) takes no other kind's threads.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from tenantry.broker.port import DeadLettersBusyError
from tenantry.http.problems import RETRY_AFTER_SECONDS, Problem, too_many, unavailable
from tenantry.turns.one_by_one import OneByOne, Turn
from tenantry.turns.places import SURE, Place, Places

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PATIENCE_SECONDS: Final = 5.0

_FOR_A_TURN: Final = 2
"""A call waits for its turn so many times as long as for a thread: turns go on all the time."""

LATEST: Final = 20.0
"""Seconds after which a refused call may come back, however many others wait; up to twice as many,
so that not all do at once."""

WAITING_FOR_A_THREAD: Final = 8
"""Waiting calls of one client, per thread of the pool; further ones are refused at once."""

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The client whose turn a request takes: its tenant, else its caller's tenant, else empty, which
counts as one client."""


def _even(_client: str) -> float:
    return 1.0


class Pool:
    """At most `size` calls at once, by turns of the clients in `CLIENT`, by their weights.

    One client has at most three quarters of the threads. Calls that keep processors busy go one by
    one beside small ones of others, see `OneByOne`. A call that waits longer than `patience`
    seconds for a thread gets a 503; one that waits twice as long for its turn, or has too many of
    its client's before it, a 429. Belongs to one event loop.
    """

    def __init__(
        self,
        size: int,
        *,
        patience: float = PATIENCE_SECONDS,
        weight_of: Callable[[str], float] = _even,
    ) -> None:
        self._size = size
        self._weight_of = weight_of
        self._for_a_turn = _FOR_A_TURN * patience
        self._places = Places(size, patience=patience)
        self._one_by_one = OneByOne(patience=self._for_a_turn)
        self._limiter: CapacityLimiter | None = None

    @property
    def wanted(self) -> bool:
        """Whether a call waits for a thread. Callable from any thread."""
        return self._places.waiting > 0

    async def run(
        self,
        call: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Run a blocking call in a thread and give its result.

        If the request is cancelled (it timed out, or the server stops), this returns at once. The
        thread keeps its place until the call ends by its own timeout.
        """
        client = CLIENT.get()
        place = await self._place_for(client)
        return await self._run(place, partial(self._on_thread, partial(call, *args, **kwargs)))

    async def run_in_turn(self, seconds: float, call: Callable[[Turn], _Result]) -> _Result:
        """Run a blocking call, as `run`, that keeps processors busy, of this process and of others.

        Its work is expected to take so many seconds. Beside small ones of other clients it may have
        to wait for its turn.
        """
        return await self._in_turn(seconds, lambda turn: self._on_thread(partial(call, turn)))

    async def await_in_turn(
        self, seconds: float, call: Callable[[], Coroutine[Any, Any, _Result]]
    ) -> _Result:
        """As `run_in_turn`, for a call that takes a thread's place, but no thread."""
        return await self._in_turn(seconds, lambda _turn: call())

    async def _in_turn(
        self, seconds: float, call: Callable[[Turn], Coroutine[Any, Any, _Result]]
    ) -> _Result:
        client = CLIENT.get()
        turn = await self._turn_for(client, seconds)
        try:
            place = await self._place_for(client)
        except BaseException:
            self._one_by_one.ended(turn, well=False)
            raise
        ended = self._one_by_one.ended
        return await self._run(place, partial(call, turn), lambda well: ended(turn, well=well))

    async def _on_thread(self, call: Callable[[], _Result]) -> _Result:
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._size)
        return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def _run(
        self,
        place: Place,
        call: Callable[[], Coroutine[Any, Any, _Result]],
        then: Callable[[bool], None] | None = None,
    ) -> _Result:
        began = asyncio.get_running_loop().time()
        running = asyncio.create_task(call())

        def ended(running: asyncio.Task[_Result]) -> None:
            self._places.give_back(place, running.get_loop().time() - began)
            # Read in any case, lest it is logged as never retrieved.
            well = not running.cancelled() and running.exception() is None
            if then is not None:
                then(well)

        running.add_done_callback(ended)
        return await asyncio.shield(running)

    async def _place_for(self, client: str) -> Place:
        if self._places.waiting_of(client) >= WAITING_FOR_A_THREAD * self._size:
            raise _too_many(RETRY_AFTER_SECONDS)
        try:
            return await self._places.take(client, self._weight_of(client))
        except TimeoutError:
            raise unavailable("too much is going on; try again", code="busy") from None

    async def _turn_for(self, client: str, seconds: float) -> Turn:
        """Wait for a turn; a call that would not get one in time is refused at once.

        Not one too early: refusing a call, and the same one later, costs as much as a small call.
        """
        wait = self._one_by_one.seconds_to_wait(client)
        if wait > self._for_a_turn * SURE:
            # Not just what is too much: there is room for one more at each turn, and all those that
            # are refused want it. Refused again and again they would take the time of turns.
            raise _too_many(wait)
        try:
            return await self._one_by_one.begin(client, self._weight_of(client), seconds)
        except TimeoutError:
            # Turns have become slower than they were: it may be long until there is room again.
            raise _too_many(self._one_by_one.seconds_to_wait(client)) from None


def _too_many(seconds: float) -> Problem:
    """Tell a client to come back in about so many seconds, when there will be room."""
    problem = too_many("too many calls wait for their turn already; send fewer at once")
    # At different times: those that are refused together must not come back together.
    seconds = min(max(RETRY_AFTER_SECONDS, seconds), LATEST) * random.uniform(1, 2)  # noqa: S311
    problem.headers["Retry-After"] = str(round(seconds))
    return problem


TURN_SECONDS: Final = 10.0
"""Seconds a call waits for the tenant's earlier work to end."""

MOST_WAITING: Final = 16
"""Running and waiting calls of one tenant; further ones are refused at once, to be tried again."""

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0


class Turns:
    """Lets a tenant's calls into a pool one at a time, so that no thread waits for another.

    Belongs to one event loop.
    """

    def __init__(self, *, patience: float = TURN_SECONDS, most: int = MOST_WAITING) -> None:
        self._patience = patience
        self._most = most
        self._locks: dict[str, asyncio.Lock] = {}
        self._there: Counter[str] = Counter()

    async def run(self, tenant_id: str, pool: Pool, call: Callable[[], _Result]) -> _Result:
        """Run a blocking call once it is the tenant's turn.

        A call that meets other work outside of the API (`DeadLettersBusyError`) is tried again
        until the patience is over. Then the error is raised; where too many calls wait already, it
        is raised at once.
        """
        until = asyncio.get_running_loop().time() + self._patience
        async with self._turn(tenant_id, until):
            pause = FIRST_PAUSE
            while True:
                try:
                    return await pool.run(call)
                except DeadLettersBusyError:
                    pause = min(pause, LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311
                    if asyncio.get_running_loop().time() + pause > until:
                        raise
                await asyncio.sleep(pause)
                pause *= 2

    @asynccontextmanager
    async def _turn(self, tenant_id: str, until: float) -> AsyncIterator[None]:
        if self._there[tenant_id] >= self._most:
            raise _busy(tenant_id)
        self._there[tenant_id] += 1
        lock = self._locks.setdefault(tenant_id, asyncio.Lock())
        try:
            try:
                async with asyncio.timeout_at(until):
                    await lock.acquire()
            except TimeoutError:
                raise _busy(tenant_id) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._there[tenant_id] -= 1
            if not self._there[tenant_id]:
                del self._there[tenant_id], self._locks[tenant_id]


def _busy(tenant_id: str) -> DeadLettersBusyError:
    return DeadLettersBusyError(
        f"the dead letters of tenant {tenant_id!r} are being replayed or discarded"
    )
