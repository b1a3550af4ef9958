"""Whether the actors live: the supervisor answers a ping, and no actor is stuck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from tenantry.control.port import ActorStatus, Control, ControlUnavailableError, SystemState
from tenantry.http.problems import Problem, unavailable

PATIENCE_SECONDS: Final = 0.5
"""How long a health check waits for the supervisor's answer."""

DEAF_SECONDS: Final = 15.0
"""How long the supervisor may be busy, as it reads tenants from a database that may be away."""

_DEAD: Final = frozenset({"crashed", "dead", "failed", "stopped", "stuck"})
_NAMED: Final = 5


class Health:
    """Checks the tree of actors, with one ping at a time. Used on one event loop."""

    def __init__(
        self, control: Control, *, patience: float = PATIENCE_SECONDS, deaf: float = DEAF_SECONDS
    ) -> None:
        self._control = control
        self._patience = patience
        self._deaf = deaf
        self._answer: asyncio.Future[None] | None = None
        self._sent_at = 0.0

    async def check(self) -> Problem | None:
        """Give what is wrong with the actors; None while they live. Takes at most a second."""
        system = self._control.status()
        if system.state is SystemState.STOPPING:
            return None  # it is stopping, as /readyz tells
        bad = [f"{name} is {state}" for name, state in _walk(system.tree) if state in _DEAD]
        bad.extend(self._control.liveness())
        if bad:
            more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            return _not_alive("; ".join(bad[:_NAMED]) + more)
        return await self._answers(system.tree.name)

    async def _answers(self, root: str) -> Problem | None:
        answer = self._answer
        if answer is None or answer.done():
            self._sent_at = time.monotonic()
            try:
                answer = self._answer = asyncio.wrap_future(self._control.ping())
            except ControlUnavailableError as error:
                return _not_alive(str(error))
        await asyncio.wait([answer], timeout=self._patience)
        silent = time.monotonic() - self._sent_at
        if answer.done() or silent < self._deaf:
            return None
        return _not_alive(f"{root} has not answered for {silent:.0f} seconds")


def _not_alive(detail: str) -> Problem:
    return unavailable(detail, code="not-alive")


def _walk(actor: ActorStatus, parent: str = "") -> Iterator[tuple[str, str]]:
    name = f"{parent}/{actor.name}" if parent else actor.name
    yield name, actor.state
    for child in actor.children:
        yield from _walk(child, name)
