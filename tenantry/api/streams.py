"""Live tails of tenants' messages: a coroutine per stream, no thread, and no query while idle.

A stream is woken when its tenant's running total of stored messages rises. The actors keep the
totals in memory, and one task polls those of all tenants with streams. Beside that, each stream
polls the store slowly, with backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import structlog

from tenantry.api.tail import first_set
from tenantry.control.port import Control
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem, too_many, unavailable
from tenantry.messages.pages import ROWS_BYTES
from tenantry.messages.port import PartitionMissingError, StoreUnavailableError

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

MAX_STREAMS: Final = 128
MAX_OF_A_CLIENT: Final = 16
PAGE: Final = 100
LOOK_SECONDS: Final = 0.05
SHORTEST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 5.0
HEARTBEAT_SECONDS: Final = 15.0
LONGEST_STREAM: Final = 3600.0
"""Seconds after which a stream ends, so that the client's rights are checked again."""

LOOK_AT_TOKEN_SECONDS: Final = 1.0
"""Seconds between checks of a stream's token, while messages come."""

HEARTBEAT: Final = b": still here\n\n"

_GUESSED_TOO_MUCH: Final = 16
"""By which factor the size of rows may be overestimated, above all of those with numbers."""

HELD_BYTES: Final = 64 * 1024 * 1024
HELD_OF_A_CLIENT: Final = 8 * 1024 * 1024
"""Bytes of all clients, and of one client, beyond which no more is read for a client with unsent
bytes. A client without any gets one reading, whatever its size, and whatever others hold."""


class Place:
    """A stream's place in its client's queue; `woken` when the stream may read."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.woken = asyncio.Event()


class Room:
    """Decides which streams may read now. Belongs to one event loop.

    The size of a reading is known only afterwards, so each client makes one at a time. The streams
    of a client take turns.
    """

    def __init__(self, most: int = HELD_BYTES, most_of_a_client: int = HELD_OF_A_CLIENT) -> None:
        self._most = most
        self._most_of_a_client = most_of_a_client
        self._held: Counter[str] = Counter()
        self._reading: set[str] = set()
        self._waiting: dict[Place, None] = {}

    def has_turn(self, place: Place) -> bool:
        """Tell whether a stream may read now; if not, it is queued for its turn."""
        first = next((one for one in self._waiting if one.client == place.client), place)
        if first is place and self._fits(place.client):
            self._waiting.pop(place, None)
            return True
        self._waiting.setdefault(place)
        return False

    @contextmanager
    def reading(self, place: Place) -> Iterator[None]:
        """Enclose a reading for a stream that has its turn."""
        self._reading.add(place.client)
        try:
            yield
        finally:
            self._reading.discard(place.client)
            self._wake()

    @contextmanager
    def holding(self, place: Place, size: int) -> Iterator[None]:
        """Enclose the sending of so many bytes for a stream."""
        self._held[place.client] += size
        try:
            yield
        finally:
            self._held[place.client] -= size
            if not self._held[place.client]:
                del self._held[place.client]
            self._wake()

    def leave(self, place: Place) -> None:
        """Remove an ended stream."""
        if place in self._waiting:
            del self._waiting[place]
            self._wake()

    def _fits(self, client: str) -> bool:
        if client in self._reading:
            return False
        mine = self._held[client]
        return not mine or (mine < self._most_of_a_client and self._held.total() < self._most)

    def _wake(self) -> None:
        """Wake the first waiting stream of each client, if there is room for it."""
        told: set[str] = set()
        for place in self._waiting:
            if place.client not in told and self._fits(place.client):
                told.add(place.client)
                place.woken.set()


class Chunk(NamedTuple):
    """Encoded events, their number, and the position of the last one."""

    data: bytes
    rows: int
    last: int

    @property
    def full(self) -> bool:
        """Whether more may follow at once: a read also ends at an estimated number of bytes."""
        return self.rows >= PAGE or len(self.data) >= ROWS_BYTES // _GUESSED_TOO_MUCH


async def _always() -> bool:
    return True


class _Sleeper(Place):
    """A stream that waits for new messages of its tenant, or for its turn."""

    def __init__(self, tenant_id: str, client: str) -> None:
        super().__init__(client)
        self.tenant_id = tenant_id


class Streams:
    """Serves a bounded number of streams. Used on one event loop."""

    def __init__(
        self,
        control: Control,
        *,
        most: int = MAX_STREAMS,
        most_of_a_client: int = MAX_OF_A_CLIENT,
        heartbeat: float = HEARTBEAT_SECONDS,
        longest: float = LONGEST_STREAM,
        room: Room | None = None,
    ) -> None:
        self._control = control
        self._most = most
        self._most_of_a_client = most_of_a_client
        self._heartbeat = heartbeat
        self._longest = longest
        self._pool = Pool(4)
        self._room = room or Room()
        self._clients: Counter[str] = Counter()
        self._sleepers: set[_Sleeper] = set()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """The number of streams."""
        return self._clients.total()

    @contextlib.contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Take a place for a stream of `client`. Raises `Problem` if there is none."""
        if self._clients.total() >= self._most:
            raise unavailable("too many streams are open; try again later", code="busy")
        if self._clients[client] >= self._most_of_a_client:
            raise too_many(f"a client may have {self._most_of_a_client} streams at once")
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def follow(
        self,
        read: Callable[[int], Chunk],
        *,
        tenant_id: str,
        after: int,
        opening: bytes,
        closing: asyncio.Event | None,
        client: str = "",
        longest: float | None = None,
        let_in: Callable[[], Awaitable[bool]] = _always,
    ) -> AsyncGenerator[bytes]:
        """Yield `opening`, then what `read` finds beyond a position, while the stream lasts.

        It ends with the server, with the tenant's messages, after an hour or `longest` seconds if
        those are fewer, and soon after its client is no longer `let_in`. It waits while the store
        is away, and while `client` has not read what was sent before.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + min(self._longest, self._longest if longest is None else longest)
        sent_at = looked_at = loop.time()
        wait = SHORTEST_WAIT
        yield opening
        sleeper = _Sleeper(tenant_id, client)
        self._sleepers.add(sleeper)
        try:
            while loop.time() < until and not (closing is not None and closing.is_set()):
                self._watch()
                sleeper.woken.clear()
                if loop.time() - looked_at >= LOOK_AT_TOKEN_SECONDS:
                    if not await let_in():
                        return
                    looked_at = loop.time()
                chunk = Chunk(b"", 0, after)
                if self._room.has_turn(sleeper):
                    try:
                        with self._room.reading(sleeper):
                            chunk = await self._pool.run(read, after)
                    except PartitionMissingError:
                        return
                    except (StoreUnavailableError, Problem) as error:
                        _log.debug("api.stream_waits", tenant=tenant_id, error=str(error))
                if chunk.rows:
                    with self._room.holding(sleeper, len(chunk.data)):
                        yield chunk.data
                    after, sent_at, wait = chunk.last, loop.time(), SHORTEST_WAIT
                    if chunk.full:
                        continue
                elif loop.time() - sent_at >= self._heartbeat:
                    yield HEARTBEAT
                    sent_at = loop.time()
                next_word = min(sent_at + self._heartbeat, until)
                pause = min(wait, max(0.0, next_word - loop.time()))
                if await first_set(sleeper.woken, closing, pause) is None:
                    wait = min(wait * 2, LONGEST_WAIT)
        finally:
            self._sleepers.discard(sleeper)
            self._room.leave(sleeper)

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._look())

    async def _look(self) -> None:
        """Wake the streams of tenants with new messages; end when no stream waits."""
        totals: dict[str, int] = {}
        while self._sleepers:
            tenants: dict[str, list[_Sleeper]] = {}
            for sleeper in self._sleepers:
                tenants.setdefault(sleeper.tenant_id, []).append(sleeper)
            for tenant_id, sleepers in tenants.items():
                runtime = self._control.runtime(tenant_id)
                total = -1 if runtime is None else runtime.stored
                if totals.get(tenant_id, total) != total:
                    for sleeper in sleepers:
                        sleeper.woken.set()
                totals[tenant_id] = total
            totals = {tenant_id: totals[tenant_id] for tenant_id in tenants}
            await asyncio.sleep(LOOK_SECONDS)
