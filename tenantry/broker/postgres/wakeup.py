"""Waking a thread that waits for a socket."""

from __future__ import annotations

import os
import select
from contextlib import suppress


class Wakeup:
    """A bell: `set` from any thread ends `wait`. Belongs to the thread that waits."""

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)

    def __del__(self) -> None:
        os.close(self._reads)
        os.close(self._writes)

    def set(self) -> None:
        """Ring; harmless while it rings."""
        with suppress(BlockingIOError):
            os.write(self._writes, b"!")

    def clear(self) -> None:
        """Forget what has rung so far."""
        with suppress(BlockingIOError):
            os.read(self._reads, 65536)

    def wait(self, also: int | None, timeout: float) -> None:
        """Wait for the bell, or for something to read on the descriptor `also`."""
        poll = select.poll()
        poll.register(self._reads, select.POLLIN)
        if also is not None:
            poll.register(also, select.POLLIN)
        poll.poll(timeout * 1000)
