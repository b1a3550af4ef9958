"""The ports of a daemon that waits for the term: they refuse every change."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol

from tenantry import __version__
from tenantry.control.port import (
    ActorStatus,
    ControlUnavailableError,
    Readiness,
    Role,
    SystemState,
    SystemStatus,
    TenantRuntime,
    TermStatus,
)
from tenantry.database.pool import Database
from tenantry.journal.parts_postgres import PostgresJournalParts
from tenantry.nodes.cluster import NodesShown
from tenantry.nodes.port import Owned
from tenantry.nodes.postgres import PostgresNodes
from tenantry.terms.port import Standing
from tenantry.unavailable import UnavailableError


def term_status(standing: Standing) -> TermStatus:
    """Return a term's status, as shown to people."""
    holder = standing.holder
    return TermStatus(
        number=standing.number, host=holder.host, pid=holder.pid, since=standing.since
    )


class Waiting(Protocol):
    """A daemon that waits for the term, as its status shows it."""

    @property
    def standing(self) -> Standing | None:
        """The standing of the awaited term; None before that is known."""

    @property
    def trouble(self) -> str | None:
        """Why the term can't be seen; None while it can."""


class StandbyControl:
    """The system (`Control`) of a standby: it has no actors, and names the leader."""

    def __init__(self, candidate: Waiting, *, on_stop: Callable[[], None]) -> None:
        self._candidate = candidate
        self._on_stop = on_stop
        self._started_at = datetime.now(UTC)
        self.stopping = False

    def reasons(self) -> tuple[str, ...]:
        """Return why this daemon does no work."""
        trouble = self._candidate.trouble
        if trouble is not None:
            return ("this daemon is a standby", f"the term is out of reach: {trouble}")
        term = self.term()
        if term is None:
            return ("this daemon is a standby",)
        since = f"{term.since:%Y-%m-%dT%H:%M:%SZ}"
        leader = f"{term.host} (pid {term.pid}) leads since {since}"
        return (f"this daemon is a standby: {leader}",)

    def term(self) -> TermStatus | None:
        """Return the term's holder, as last seen; None before that."""
        standing = self._candidate.standing
        return None if standing is None else term_status(standing)

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a change, and name the leader."""
        raise ControlUnavailableError("; ".join(self.reasons()))

    execute = drain = refuse

    def readiness(self) -> Readiness:
        """Return that this daemon is not ready, and which leader it stands by for."""
        status = self.status()
        return Readiness(state=status.state, reasons=status.reasons)

    def status(self) -> SystemStatus:
        """Return that this daemon stands by, and for which leader."""
        state = SystemState.STOPPING if self.stopping else SystemState.STANDBY
        return SystemStatus(
            state=state,
            ready=False,
            reasons=self.reasons(),
            started_at=self._started_at,
            version=__version__,
            pid=os.getpid(),
            role=Role.STANDBY,
            term=self.term(),
            tree=ActorStatus(
                name="candidate", kind="Candidate", state=state.value, mailbox=0, restarts=0
            ),
        )

    def runtime(self, tenant_id: str) -> TenantRuntime | None:  # noqa: ARG002
        """Return None: a standby has no actors."""
        return None

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        """Return nothing: a standby has no actors."""
        return {}

    def ping(self) -> Future[None]:
        """Answer at once: there is no actor to wait for."""
        answer: Future[None] = Future()
        answer.set_result(None)
        return answer

    def liveness(self) -> tuple[str, ...]:
        """Report no hang: all work is on the main thread, which systemd watches."""
        return ()

    def stop(self) -> None:
        """Begin the shutdown."""
        self.stopping = True
        self._on_stop()


class StandbyNodes(NodesShown):
    """The nodes (`Cluster`) as seen by a standby, which is not a node; it changes nothing."""

    def __init__(self, nodes: PostgresNodes, control: StandbyControl) -> None:
        super().__init__(nodes)
        self.set_draining = self.want = control.refuse

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Cluster.owners`; empty where the schema is too old to have owners."""
        try:
            return super().owners(tenant_ids)
        except UnavailableError:
            return {}


class StandbyParts:
    """The parts of the journal (`JournalParts`) as a standby sees them; it changes nothing."""

    def __init__(self, database: Database, control: StandbyControl) -> None:
        parts = PostgresJournalParts(database)
        self.listed, self.lines = parts.listed, parts.lines
        self.begin = self.archive = self.put_back = self.restore = control.refuse


class StandbyPorts:
    """The other ports that a standby refuses: publish, browse, count, prove and keep keys.

    It stands in for `Publishing`, `DeadLetters`, `Queues`, `Prover` and `IdempotencyKeys`.
    """

    singly: Final = False

    def __init__(self, control: StandbyControl) -> None:
        self.publish = self.browse = self.queue_counts = control.refuse
        self.prove = self.claim = control.refuse
