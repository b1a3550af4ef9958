"""All of a daemon's ways to one kind of broker, made together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tenantry.broker.port import Administration, Consuming, DeadLetters, Probes, Publishing, Queues


class Loop(Protocol):
    """What runs on a thread of its own until it is stopped."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> object:
        """Make `run` return soon; harmless twice, and before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """What the embedded broker's ring of segments comes to."""

    bytes: int
    """Of all its segments."""
    held: int
    """Segments that ran empty, and that somebody keeps from being truncated."""
    swept: int
    """Messages removed since the start because their tenant was deleted before they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The broker behind its ports.

    Nothing is connected before its owner calls `prepare`, which raises `BrokerError` where the
    broker can't be used, and then runs the `loops`, each on a thread of its own, in their order.
    `reconnects` counts by connection; `close` gives up what is kept open between calls.
    Without `probes` nobody can take a tenant's place on this broker; `ring` is the embedded one's.
    """

    administration: Administration
    queues: Queues
    consuming: Consuming
    publishing: Publishing
    dead_letters: DeadLetters
    connected: Callable[[], bool]
    reconnects: Mapping[str, Callable[[], int]]
    prepare: Callable[[], None]
    loops: Mapping[str, Loop]
    close: Callable[[], None]
    probes: Probes | None = None
    ring: Callable[[], Ring | None] = lambda: None
