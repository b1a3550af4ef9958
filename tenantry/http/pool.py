"""Blocking calls off the event loop, each kind of them in a bounded number of threads.

One kind that is stuck (commands while the broker is away, say) can't take the threads of another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from tenantry.http.problems import unavailable

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PATIENCE_SECONDS: Final = 5.0


class Pool:
    """At most `size` calls at once; who waits longer than `patience` seconds gets a 503."""

    def __init__(self, size: int, *, patience: float = PATIENCE_SECONDS) -> None:
        self._size = size
        self._patience = patience
        self._free = asyncio.Semaphore(size)
        self._limiter: CapacityLimiter | None = None

    async def run(
        self,
        call: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Run a blocking call in a thread and give its result.

        When the request is cancelled (its time is over, or the server stops), it returns at once.
        The thread ends by the call's own timeout, and keeps its place until then.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise unavailable("too much is going on; try again", code="busy") from None
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._size)
        running = asyncio.create_task(
            to_thread.run_sync(
                lambda: call(*args, **kwargs), abandon_on_cancel=True, limiter=self._limiter
            )
        )
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Task[_Result]) -> None:
        self._free.release()
        if not running.cancelled():
            running.exception()  # asked for, so that nobody complains when the request has gone
