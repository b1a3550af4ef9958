"""The prover: puts a probe in each tenant's place, makes all attempts, journals the outcome."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from tenantry.broker.port import BrokerError, Probes, TenantTopology
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.topology import topology_of
from tenantry.domain import names
from tenantry.domain.events import IsolationVerified, IsolationViolated, SystemEvent
from tenantry.domain.names import UserKind
from tenantry.domain.tenant import Lifecycle
from tenantry.isolation import sql
from tenantry.isolation.port import Check, DatabaseProbes, Findings, IsolationReport, LatestProof
from tenantry.isolation.proof import verify_isolation
from tenantry.journal.port import ANY, EventStore, Metadata
from tenantry.messages.port import MessageStoreError
from tenantry.projections.port import TenantDirectory
from tenantry.tenant_client.access import ProducerError, TenantAccess
from tenantry.tenant_client.amqp import AttemptResult, TenantClientError
from tenantry.tenant_client.sql import SqlClient

log = structlog.get_logger(__name__)

NEIGHBOURS: Final = 20
"""Most other tenants that each tenant is tried on: all tenants' rights follow one pattern."""

MOST_FAILURES: Final = 100
"""Most failures written in one event."""

PAGE: Final = 500


@dataclass(eq=False, slots=True, kw_only=True)
class IsolationProver:
    """Proves isolation (`Prover`). One proof at a time; callable from any thread.

    Without `broker` only the database's side is proven.
    """

    directory: TenantDirectory
    journal: EventStore
    broker: Probes | None
    database: DatabaseProbes
    installation: str = ""
    tls: Tls = SYSTEMS
    _alone: threading.Lock = field(default_factory=threading.Lock, init=False)
    _latest: LatestProof | None = field(default=None, init=False)

    def latest(self) -> LatestProof | None:
        """Give the outcome of the latest proof of all tenants."""
        return self._latest

    def prove(
        self,
        tenant_ids: Sequence[str] | None = None,
        *,
        broker: bool = True,
        metadata: Metadata,
        go_on: Callable[[], None] = lambda: None,
    ) -> IsolationReport:
        """See `Prover.prove`. Calls `go_on` before each tenant."""
        with self._alone:
            everybody = list(self._existing())
            wanted = None if tenant_ids is None else set(tenant_ids)
            chosen = [one for one in everybody if wanted is None or one.tenant_id in wanted]
            report = self._examine(chosen, everybody, broker=broker, go_on=go_on)
            self._record(report, len(chosen), metadata)
            if wanted is None and broker:
                self._latest = LatestProof(
                    failures=len(report.leaks) + len(report.denials),
                    unjudged=len(report.unjudged),
                    at=time.time(),
                )
            return report

    def _existing(self) -> Iterator[TenantTopology]:
        after: str | None = None
        while page := self.directory.page(after=after, limit=PAGE):
            for state in page:
                if state.lifecycle in (Lifecycle.ACTIVE, Lifecycle.PAUSED):
                    yield topology_of(state)
            after = page[-1].tenant_id

    def _examine(
        self,
        chosen: Iterable[TenantTopology],
        everybody: Sequence[TenantTopology],
        *,
        broker: bool,
        go_on: Callable[[], None],
    ) -> IsolationReport:
        checks: list[Check] = []
        unjudged: list[str] = []
        probes = self.broker if broker else None
        with_sql = self._prepare(probes)
        with self._several(probes):
            for mine in chosen:
                go_on()
                others = neighbours(mine, everybody)
                try:
                    if probes is not None:
                        checks += self._on_broker(
                            probes, mine, others, installation=self.installation, tls=self.tls
                        )
                    if with_sql:
                        checks += self._in_database(mine, others)
                except (BrokerError, MessageStoreError, ProducerError, TenantClientError) as error:
                    unjudged.append(f"tenant {mine.tenant_id}: {error}")
        return IsolationReport(
            checks=tuple(checks), unjudged=tuple(unjudged), open=tuple(self._open())
        )

    def _prepare(self, probes: Probes | None) -> bool:
        """Remove what an earlier proof has left; return whether the database may have roles."""
        try:
            if probes is not None:
                probes.sweep()
            if self.database.available():
                self.database.sweep()
                return True
        except (BrokerError, MessageStoreError) as error:
            # Tenants that can't be judged then are reported one by one.
            log.warning("isolation.probes_left", error=str(error))
            return True
        return False

    @staticmethod
    @contextmanager
    def _several(probes: Probes | None) -> Iterator[None]:
        if probes is None:
            yield
            return
        try:
            with probes.several():
                yield
        except BrokerError as error:
            # The next proof sweeps the probes that are left.
            log.warning("isolation.probes_left", error=str(error))

    def _open(self) -> Sequence[str]:
        try:
            return self.database.open()
        except MessageStoreError as error:
            return (f"what the database leaves open can't be told: {error}",)

    @staticmethod
    def _on_broker(
        probes: Probes,
        mine: TenantTopology,
        others: Sequence[TenantTopology],
        *,
        installation: str,
        tls: Tls,
    ) -> tuple[Check, ...]:
        with probes.probe(mine.tenant_id) as probe:
            if mine.consumer_access and probe.reader is None:
                user = names.username(mine.tenant_id, UserKind.CONSUMER)
                raise BrokerError(f"user {user!r} is not there, or has no rights")
            beyond = tuple(
                Check(
                    tenant_id=mine.tenant_id,
                    owner=excess.owner,
                    action=excess.action,
                    target=excess.target,
                    allowed=True,
                    forbidden=True,
                )
                for excess in probes.excess(mine.tenant_id)
            )
            access = TenantAccess(topology=mine, credentials=probe.sender, reader=probe.reader)
            report = verify_isolation(
                [access],
                [mine, *others],
                say=lambda _line: None,
                management=probes.management_address,
                installation=installation,
                tls=tls,
            )
            return beyond + report.checks

    def _in_database(
        self, mine: TenantTopology, others: Sequence[TenantTopology]
    ) -> Iterator[Check]:
        findings = Findings(mine, mine)
        for excess in self.database.excess(mine.tenant_id):
            target = f"database role ({excess})"
            findings.record("configure", target, AttemptResult.ALLOWED, forbidden=True)
        yield from findings.checks
        name = f"isolation of {mine.tenant_id}"
        with (
            self.database.probe(mine.tenant_id) as credentials,
            closing(SqlClient(credentials.url, name=name)) as client,
        ):
            client.open()
            yield from sql.reading(client, mine, others)

    def _record(self, report: IsolationReport, tenants: int, metadata: Metadata) -> None:
        failures = [str(one) for one in (*report.leaks, *report.denials)]
        for failure in failures:
            log.error("isolation.violated", failure=failure)
        for reason in report.unjudged:
            log.warning("isolation.not_judged", reason=reason)
        judged = tenants - len(report.unjudged)
        event: SystemEvent
        if failures:
            event = IsolationViolated(
                tenants=judged, checks=len(report.checks), failures=tuple(failures[:MOST_FAILURES])
            )
        elif judged:
            event = IsolationVerified(tenants=judged, checks=len(report.checks))
            log.info("isolation.verified", tenants=judged, checks=len(report.checks))
        else:
            return
        self.journal.append(names.ISOLATION_STREAM, [event], expected=ANY, metadata=metadata)


def neighbours(mine: TenantTopology, everybody: Sequence[TenantTopology]) -> list[TenantTopology]:
    """Choose the tenants to try: all, or ids that extend one another and a random sample."""
    others = [one for one in everybody if one.tenant_id != mine.tenant_id]
    if len(others) <= NEIGHBOURS:
        return others
    # A pattern that lacks an anchor lets just these through.
    alike = [
        one
        for one in others
        if one.tenant_id.startswith(mine.tenant_id) or mine.tenant_id.startswith(one.tenant_id)
    ]
    alike = alike[: NEIGHBOURS // 2]
    rest = [one for one in others if one not in alike]
    return alike + random.sample(rest, NEIGHBOURS - len(alike))
