"""What a kind of broker is to the rest: a package with an `adapter` module like `BrokerAdapter`.

`select.py` registers them, and nothing else knows which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from tenantry.broker.moving import Source
from tenantry.broker.port import (
    Administration,
    BrokerUnavailableError,
    Consuming,
    DeadLetters,
    Probes,
    Publishing,
    Queues,
)
from tenantry.loops import Loop

if TYPE_CHECKING:
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


@dataclass(frozen=True, slots=True)
class TermFence:
    """A daemon's term, as its adapters see it: what they send depends on whether it is `valid`.

    Terms are counted by node in an `installation`. Without a `number` there is no term: no other
    daemon acts.
    """

    number: int | None = None
    valid: Callable[[], bool] = lambda: True
    installation: str = ""
    node: str = ""

    def check(self) -> None:
        """Raise `BrokerUnavailableError` once the term may be another's."""
        if not self.valid():
            raise BrokerUnavailableError(f"the term {self.number} has lapsed; nothing is sent")


UNFENCED: Final = TermFence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """What the embedded broker's ring of segments comes to."""

    bytes: int
    """Of all its segments."""
    held: int
    """Segments that ran empty, and that a session keeps from being truncated."""
    swept: int
    """Messages removed since the start because their tenant was deleted before they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLinks:
    """A daemon's ways to its broker, behind the ports.

    Nothing is connected before their owner calls `prepare`, which raises `BrokerError` where the
    broker can't be used, and then runs the `loops`, each on a thread of its own, in their order.
    `reconnects` counts by connection; `close` gives up what is kept open between calls.
    `shut_out` closes what a node has left open that did it under a term before the given one; it
    raises `BrokerError`. Without `probes` no user can take a tenant's place on this broker; `ring`
    is the embedded one's.
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
    close: Callable[[], None] = lambda: None
    shut_out: Callable[[str, int], object] = lambda *_: None
    probes: Probes | None = None
    ring: Callable[[], Ring | None] = lambda: None


class BrokerAdapter(Protocol):
    """A kind of broker; the module `adapter` of its package has these functions."""

    def links(self, settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
        """Make a daemon's ways to the broker of the settings. Raises `BrokerError`.

        `database` is the one that messages are stored in, with sessions under the term.
        """

    def describe(self, settings: Settings) -> Mapping[str, str] | None:
        """Say where clients find the broker, without a user; None: in the database itself."""

    def publishing_access(self, settings: Settings) -> Mapping[str, str]:
        """Give what another process needs in order to publish, for `publishing` there."""

    def publishing(
        self, access: Mapping[str, str], database: Database
    ) -> tuple[Publishing, Loop | None]:
        """Make a way to publish alone, without a term; a loop must run as long as it is used."""

    def source(
        self, settings: Settings, database: Database, fence: TermFence, *, alone: bool
    ) -> tuple[AbstractContextManager[Source], Loop | None]:
        """Make a way to move what lies in the broker; a loop must run as long as it is used.

        It is `alone` if no daemon runs: then who else seems to read there is gone. Raises
        `BrokerError` where that can't be.
        """
