"""The interface of a kind of broker: a package with an `adapter` module like `BrokerAdapter`.

Only `select.py` registers them and knows which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tenantry.broker.moving import Source
from tenantry.broker.port import (
    Administration,
    BrokerUnavailableError,
    Consuming,
    DeadLetters,
    LoopPublishing,
    Probes,
    Publishing,
    Queues,
)
from tenantry.loops import Loop

if TYPE_CHECKING:
    from tenantry.database.loop import LoopQueries
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


@dataclass(frozen=True, slots=True)
class TermFence:
    """A daemon's term, as adapters see it: they send only while it is `valid`.

    Terms are counted per node of an `installation`. Without a `number` there is no term: no other
    daemon acts.
    """

    number: int | None = None
    valid: Callable[[], bool] = lambda: True
    installation: str = ""
    node: str = ""

    def check(self) -> None:
        """Raise `BrokerUnavailableError` once another daemon may have the term."""
        if not self.valid():
            raise BrokerUnavailableError(f"the term {self.number} has lapsed; nothing is sent")


UNFENCED: Final = TermFence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """The size of the embedded broker's ring of segments."""

    bytes: int
    """The bytes of all segments."""
    held: int
    """Segments that are empty and that a session keeps from being truncated."""
    swept: int
    """Messages removed since the start because their tenant was deleted before they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLinks:
    """A daemon's links to its broker, behind the ports.

    Nothing is connected before the owner calls `prepare`, which raises `BrokerError` if the broker
    can't be used, and then runs the `loops`, each on a thread of its own, in their order.
    `reconnects` counts by connection; `close` closes what is kept open between calls. `shut_out`
    takes a node and a term, and closes connections that the node left open under earlier terms; it
    raises `BrokerError`. Without `probes`, this broker has no probe users; `ring` is for the
    embedded broker.
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


class Publishers(NamedTuple):
    """What publishes in a process without a term.

    Its `loop` must run as long as they are used. Without `on_loop` this broker needs threads.
    """

    publishing: Publishing
    on_loop: LoopPublishing | None = None
    loop: Loop | None = None


class BrokerAdapter(Protocol):
    """A kind of broker; the module `adapter` of its package has these functions."""

    def links(self, settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
        """Make a daemon's links to the broker of the settings. Raises `BrokerError`.

        `database` is the message store's, with sessions under the term.
        """

    def describe(self, settings: Settings) -> Mapping[str, str] | None:
        """Return the broker's address for clients, without a user; None if it is the database."""

    def publishing_access(self, settings: Settings) -> Mapping[str, str]:
        """Return what another process needs in order to call `publishing`."""

    def publishing(
        self, access: Mapping[str, str], database: Database, queries: LoopQueries | None
    ) -> Publishers:
        """Make publishers without a term; `queries` are an event loop's, if they are for one."""

    def source(
        self, settings: Settings, database: Database, fence: TermFence, *, alone: bool
    ) -> tuple[AbstractContextManager[Source], Loop | None]:
        """Make a source to move the broker's messages from; its loop must run meanwhile.

        `alone` says that no daemon runs: then any other reader that seems to exist is gone. Raises
        `BrokerError` if the source can't be used.
        """
