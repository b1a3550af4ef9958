"""A daemon as one of several nodes: its introduction, and its actors' messages from the others."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

import structlog

from tenantry import __version__
from tenantry.actors.messages import Acquired, Release
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import tell
from tenantry.assembly.backends import Backends
from tenantry.broker.port import BrokerError
from tenantry.control.port import SystemState
from tenantry.domain import names
from tenantry.domain.events import TenantMoved
from tenantry.journal.port import ANY, EventStore, JournalError, Metadata
from tenantry.nodes.joining import Joined, this_machine
from tenantry.nodes.membership import Membership
from tenantry.nodes.port import Introduction, Owned
from tenantry.nodes.postgres import PostgresNodes
from tenantry.settings import Settings
from tenantry.urls import address

log = structlog.get_logger("nodes")

AWAY: Final = 10.0
"""Seconds without the broker after which a node gets no more tenants."""

AT_ONCE: Final = 50
"""Most moves that are journalled between two turns."""

MOST_MOVES: Final = 100_000
"""Most moves that wait for the journal; in a long outage the oldest are dropped."""

_ANY_ADDRESS: Final = {"0.0.0.0", "::", "[::]", ""}  # noqa: S104 - compared with


def introduction(settings: Settings, name: str, *, port: int | None) -> Introduction:
    """Return this node's introduction; its API listens on `port`."""
    server, node = settings.server, settings.node
    scheme = "https" if server.tls is not None else "http"
    host = socket.gethostname() if server.host in _ANY_ADDRESS else server.host
    return Introduction(
        name=name,
        version=__version__,
        weight=node.weight,
        machine=this_machine(),
        socket=str(settings.control_socket.absolute()),
        address=node.address or f"{scheme}://{address(host, port)}",
    )


class Away:
    """Measures how long the broker has been away from this node; asked from one thread."""

    def __init__(self, connected: Callable[[], bool]) -> None:
        self._connected = connected
        self._since: float | None = None

    def seconds(self) -> float:
        """Return the seconds since the broker was first seen away; 0 while it is connected."""
        if self._connected():
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        return 0.0 if self._since is None else time.monotonic() - self._since


class MovesJournal:
    """Journals tenants that came from another node, between turns so as not to delay them."""

    def __init__(self, journal: EventStore) -> None:
        self._journal = journal
        self._waiting: deque[Owned] = deque(maxlen=MOST_MOVES)

    def __call__(self, owned: Owned) -> None:
        """Note a tenant that this node owns now."""
        self._waiting.append(owned)

    def write(self) -> None:
        """Journal some of the waiting moves; during an outage, none."""
        for _ in range(min(AT_ONCE, len(self._waiting))):
            owned = self._waiting.popleft()
            event = TenantMoved(
                tenant_id=owned.tenant_id,
                node=owned.node or "",
                previous=owned.previous,
                epoch=owned.epoch,
            )
            stream = names.placement_journal_stream(owned.tenant_id)
            by = Metadata(actor=f"node {owned.node}")
            try:
                self._journal.append(stream, [event], expected=ANY, metadata=by)
            except JournalError as error:
                self._waiting.appendleft(owned)
                log.debug("nodes.moves_not_journalled", error=str(error))
                return


def make_membership(
    backends: Backends, joined: Joined, runtime: RuntimeState, *, moved: Callable[[Owned], object]
) -> Membership:
    """Make this node's membership among the nodes; its turns send messages to the actors."""

    def to_supervisor(message: Acquired | Release) -> None:
        if runtime.supervisor is not None:  # a later supervisor starts with all owned tenants
            tell(runtime.supervisor, message)

    def acquire(tenant_ids: Collection[str], in_order: bool) -> None:
        to_supervisor(Acquired(tenant_ids=tuple(tenant_ids), in_order=in_order))

    def shut_out(node: str, number: int) -> bool:
        try:
            backends.links.shut_out(node, number)
        except BrokerError as error:
            log.warning("broker.not_shut_out", node=node, error=str(error))
            return False
        return True

    away = Away(backends.links.connected)
    return Membership(
        PostgresNodes(backends.stores.database),
        joined.name,
        joined.watchers,
        acquire=acquire,
        release=lambda tenant_id: to_supervisor(Release(tenant_id=tenant_id)),
        active=lambda: runtime.state is SystemState.RUNNING and away.seconds() < AWAY,
        stranded=away.seconds,
        rate=runtime.rate,
        shut_out=shut_out,
        moved=moved,
    )
