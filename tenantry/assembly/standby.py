"""The ports of a daemon that waits for the term: whatever would change something is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

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
    """Tell of a term what people want to know."""
    holder = standing.holder
    return TermStatus(
        number=standing.number, host=holder.host, pid=holder.pid, since=standing.since
    )


class Waiting(Protocol):
    """A daemon that waits for its turn, as those see it who ask why."""

    @property
    def standing(self) -> Standing | None:
        """How the term stands that it waits for; None before that is known."""

    @property
    def trouble(self) -> str | None:
        """Why that can't be seen, as long as it can't."""


class StandbyControl:
    """The system (`Control`) of a standby: it has no actors, and names who leads."""

    def __init__(self, candidate: Waiting, *, on_stop: Callable[[], None]) -> None:
        self._candidate = candidate
        self._on_stop = on_stop
        self._started_at = datetime.now(UTC)
        self.stopping = False

    def reasons(self) -> tuple[str, ...]:
        """Say why nothing is done here."""
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
        """Tell who holds the term, as last seen; None before that."""
        standing = self._candidate.standing
        return None if standing is None else term_status(standing)

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what would change something, and say who leads."""
        raise ControlUnavailableError("; ".join(self.reasons()))

    execute = drain = refuse

    def readiness(self) -> Readiness:
        """Tell that it is not ready, and for whom it stands by."""
        status = self.status()
        return Readiness(state=status.state, reasons=status.reasons)

    def status(self) -> SystemStatus:
        """Tell that it stands by, and for whom."""
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
        """Know of no tenant's actors."""
        return None

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        """Have none."""
        return {}

    def ping(self) -> Future[None]:
        """Answer at once: there is no actor to wait for."""
        answer: Future[None] = Future()
        answer.set_result(None)
        return answer

    def liveness(self) -> tuple[str, ...]:
        """Find nothing that hangs: its one duty is the main thread's, which systemd watches."""
        return ()

    def stop(self) -> None:
        """Begin the shutdown."""
        self.stopping = True
        self._on_stop()


class StandbyNodes(NodesShown):
    """The nodes (`Cluster`) as a standby sees them, which is none; it changes nothing."""

    def __init__(self, nodes: PostgresNodes, control: StandbyControl) -> None:
        super().__init__(nodes)
        self.set_draining = self.want = control.refuse

    def owners(self, tenant_ids: Collection[str]) -> Mapping[str, Owned]:
        """See `Cluster.owners`; nothing where the schema is too old to tell."""
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
    """What else a standby may not use: to publish, to browse, to count, to prove, to keep keys.

    It stands for `Publishing`, `DeadLetters`, `Queues`, `Prover` and `IdempotencyKeys`.
    """

    def __init__(self, control: StandbyControl) -> None:
        self.publish = self.browse = self.queue_counts = control.refuse
        self.prove = self.claim = control.refuse
