"""Makes metrics of the system's state at the moment of a scrape; nothing is kept in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tenantry.audit.auditor import Latest
from tenantry.broker.adapter import Ring
from tenantry.control.port import ActorStatus, Role, SystemState, SystemStatus, TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.isolation.port import LatestProof
from tenantry.metrics.recorder import LATENCY_MS, Reading, Recorder

PARKED: Final = "parked"

STUCK: Final = "stuck"

_ID: Final = ["tenant_id"]
_NOT_SEEN: Final = frozenset({None, Lifecycle.DELETED})
"""Of tenants whose totals are not known yet, and of those that exist no more."""

_STATES: Final = (
    *(one.value for one in Lifecycle if one is not Lifecycle.DELETED),
    PARKED,
)
_LATENCY_BOUNDS: Final = tuple(bound / 1000 for bound in LATENCY_MS)


class SystemCollector(Collector):
    """The daemon's own metrics.

    `status` is asked once a scrape and gives one picture for all of them. `reconnects` tells for
    each connection to the broker how often it was opened again after a loss,
    `audits` the outcome of each tenant's latest audit.
    """

    def __init__(
        self,
        *,
        status: Callable[[], SystemStatus],
        recorder: Recorder,
        reconnects: Mapping[str, Callable[[], int]],
        audits: Callable[[], Mapping[str, Latest]] = dict,
        abandoned_handlers: Callable[[], int] = int,
        isolation: Callable[[], LatestProof | None] = lambda: None,
        ring: Callable[[], Ring | None] = lambda: None,
    ) -> None:
        self._status = status
        self._recorder = recorder
        self._reconnects = dict(reconnects)
        self._audits = audits
        self._abandoned_handlers = abandoned_handlers
        self._isolation = isolation
        self._ring = ring

    def collect(self) -> Iterator[Metric]:
        """Give every metric as of now."""
        status = self._status()
        tenants = [one for one in status.tenants.values() if one.lifecycle not in _NOT_SEEN]
        ids = [tenant.tenant_id for tenant in tenants]
        yield from _system(status)
        yield _states(tenants)
        yield from _tenants(tenants)
        yield _mailboxes(status.tree, frozenset(ids))
        yield self._latencies(ids)
        yield from _audits(self._audits(), ids)
        yield from _isolation(self._isolation())
        yield from _ring(self._ring())
        yield self._failed_attempts(ids)
        yield self._reused(ids)
        yield GaugeMetricFamily(
            "tenantry_handler_threads_abandoned",
            "Threads left behind whose handlers hang",
            value=self._abandoned_handlers(),
        )
        yield from self._events()

    def _latencies(self, tenant_ids: Iterable[str]) -> Metric:
        family = HistogramMetricFamily(
            "tenantry_message_latency_seconds",
            "Time from a message's publishing to its commit",
            labels=_ID,
        )
        for tenant_id in tenant_ids:
            reading = self._recorder.latency(tenant_id)
            if reading is not None:
                _add(family, reading, [tenant_id], bounds=_LATENCY_BOUNDS)
        return family

    def _failed_attempts(self, tenant_ids: Iterable[str]) -> Metric:
        family = CounterMetricFamily(
            "tenantry_failed_attempts",
            "Attempts at a message that its handler has failed",
            labels=[*_ID, "reason"],
        )
        for tenant_id in tenant_ids:
            for reason, count in self._recorder.failed_attempts(tenant_id).items():
                family.add_metric([tenant_id, reason], count)
        return family

    def _reused(self, tenant_ids: Iterable[str]) -> Metric:
        family = CounterMetricFamily(
            "tenantry_message_ids_reused",
            "Messages under an id under which something else is stored",
            labels=_ID,
        )
        for tenant_id in tenant_ids:
            family.add_metric([tenant_id], self._recorder.reused_ids(tenant_id))
        return family

    def _events(self) -> Iterator[Metric]:
        recorder = self._recorder
        for name, text, distribution in (
            ("tenantry_batch_messages", "Messages in a stored batch", recorder.batch_sizes),
            ("tenantry_store_seconds", "Time a batch took to commit", recorder.store_seconds),
            (
                "tenantry_journal_append_seconds",
                "Time an append to the journal took",
                recorder.append_seconds,
            ),
        ):
            family = HistogramMetricFamily(name, text)
            _add(family, distribution.read(), [])
            yield family
        yield CounterMetricFamily(
            "tenantry_store_retries",
            "Attempts at a batch that failed as the database could not be reached",
            value=recorder.delays,
        )
        yield CounterMetricFamily(
            "tenantry_journal_events", "Events appended to the journal", value=recorder.events
        )
        restarts = CounterMetricFamily(
            "tenantry_restarts", "Actors that failed and were replaced", labels=["kind"]
        )
        for kind, count in recorder.failures().items():
            restarts.add_metric([kind], count)
        yield restarts
        drift = CounterMetricFamily(
            "tenantry_drift",
            "Things of tenants found changed behind the daemon's back",
            labels=["kind", "outcome"],
        )
        for (kind, outcome), count in recorder.drift().items():
            drift.add_metric([kind, outcome], count)
        yield drift
        stuck = CounterMetricFamily(
            "tenantry_stuck",
            "Actors that hung and were replaced, and loops that hung",
            labels=["kind"],
        )
        for kind, count in recorder.stuck().items():
            stuck.add_metric([kind], count)
        yield stuck
        reconnects = CounterMetricFamily(
            "tenantry_broker_reconnects",
            "Times a connection to the broker was opened again",
            labels=["connection"],
        )
        for connection, count_of in self._reconnects.items():
            reconnects.add_metric([connection], count_of())
        yield reconnects


def _isolation(latest: LatestProof | None) -> Iterator[Metric]:
    if latest is None:
        return
    yield GaugeMetricFamily(
        "tenantry_isolation_failures",
        "What the latest proof of isolation found possible that must not be, or the reverse",
        value=latest.failures,
    )
    yield GaugeMetricFamily(
        "tenantry_isolation_unjudged",
        "Tenants of whom the latest proof of isolation gave no verdict",
        value=latest.unjudged,
    )
    yield GaugeMetricFamily(
        "tenantry_isolation_timestamp_seconds",
        "When the isolation of all tenants was last proven",
        value=latest.at,
    )


def _ring(ring: Ring | None) -> Iterator[Metric]:
    if ring is None:
        return
    yield GaugeMetricFamily(
        "tenantry_queue_ring_bytes",
        "Size of the embedded broker's queues, all segments together",
        value=ring.bytes,
    )
    yield GaugeMetricFamily(
        "tenantry_queue_segments_held",
        "Empty segments of the embedded broker that a session keeps from being truncated",
        value=ring.held,
    )
    yield CounterMetricFamily(
        "tenantry_messages_swept",
        "Messages removed because their tenant was deleted before they were committed",
        value=ring.swept,
    )


def _audits(latest: Mapping[str, Latest], tenant_ids: Iterable[str]) -> Iterator[Metric]:
    difference = GaugeMetricFamily(
        "tenantry_audit_difference",
        "Messages by which the tenant's latest audit did not add up; 0 is right",
        labels=_ID,
    )
    at = GaugeMetricFamily(
        "tenantry_audit_timestamp_seconds", "When the tenant was last audited", labels=_ID
    )
    for tenant_id in tenant_ids:
        if (found := latest.get(tenant_id)) is not None:
            difference.add_metric([tenant_id], found.difference)
            at.add_metric([tenant_id], found.at)
    yield from (difference, at)


def _system(status: SystemStatus) -> Iterator[Metric]:
    yield InfoMetricFamily("tenantry_build", "What runs here", value={"version": status.version})
    yield GaugeMetricFamily(
        "tenantry_ready", "1 while consuming, as /readyz tells", value=float(status.ready)
    )
    yield GaugeMetricFamily(
        "tenantry_is_leader",
        "1 while this daemon holds the term, 0 while it is a standby",
        value=float(status.role is Role.LEADER),
    )
    if status.term is not None:
        yield GaugeMetricFamily(
            "tenantry_term",
            "The term's number; it goes up whenever a daemon takes it",
            value=status.term.number,
        )
    state = GaugeMetricFamily(
        "tenantry_state", "1 for the state the daemon is in", labels=["state"]
    )
    for one in SystemState:
        state.add_metric([one.value], float(one is status.state))
    yield state
    yield GaugeMetricFamily(
        "tenantry_stuck_actors",
        "Actors that hang and are about to be replaced",
        value=_stuck(status.tree),
    )
    yield GaugeMetricFamily(
        "tenantry_abandoned_threads",
        "Threads of replaced actors that still hang",
        value=len(status.abandoned),
    )


def _stuck(actor: ActorStatus) -> int:
    return (actor.state == STUCK) + sum(_stuck(child) for child in actor.children)


def _states(tenants: Iterable[TenantRuntime]) -> Metric:
    counts = Counter(PARKED if tenant.parked else str(tenant.lifecycle) for tenant in tenants)
    family = GaugeMetricFamily("tenantry_tenants", "Tenants in each state", labels=["state"])
    for name in _STATES:
        family.add_metric([name], counts[name])
    return family


def _tenants(tenants: Iterable[TenantRuntime]) -> Iterator[Metric]:
    workers = GaugeMetricFamily(
        "tenant_workers_current", "Workers that may store a tenant's messages now", labels=_ID
    )
    pending = GaugeMetricFamily(
        "queue_messages_pending",
        "Messages waiting in a tenant's queues, by the broker's count",
        labels=_ID,
    )
    unsettled = GaugeMetricFamily(
        "tenantry_unsettled",
        "Deliveries taken from the broker and not acknowledged yet",
        labels=_ID,
    )
    held = GaugeMetricFamily(
        "tenantry_held", "Deliveries that wait for another attempt", labels=_ID
    )
    consuming = GaugeMetricFamily(
        "tenantry_consuming", "1 while a tenant's queues are consumed", labels=_ID
    )
    parked = GaugeMetricFamily(
        "tenantry_parked", "1 for a tenant that was given up, until it is resumed", labels=_ID
    )
    processed = CounterMetricFamily(
        "messages_processed",
        "Messages brought to an end since the tenant was created",
        labels=[*_ID, "outcome"],
    )
    for tenant in tenants:
        tenant_id = tenant.tenant_id
        workers.add_metric([tenant_id], tenant.workers_current)
        if tenant.pending is not None:
            pending.add_metric([tenant_id], tenant.pending)
        unsettled.add_metric([tenant_id], tenant.unsettled)
        held.add_metric([tenant_id], tenant.held)
        consuming.add_metric([tenant_id], float(tenant.consuming))
        parked.add_metric([tenant_id], float(tenant.parked is not None))
        processed.add_metric([tenant_id, "stored"], tenant.stored)
        processed.add_metric([tenant_id, "duplicate"], tenant.duplicates)
        processed.add_metric([tenant_id, "dead_lettered"], tenant.dead_lettered)
    yield from (workers, pending, unsettled, held, consuming, parked, processed)


def _mailboxes(root: ActorStatus, tenant_ids: frozenset[str]) -> Metric:
    """Count waiting messages by tenant and kind of actor; the workers of a tenant together."""
    family = GaugeMetricFamily(
        "tenantry_mailbox_depth",
        "Messages waiting for an actor; for the supervisor, tenant_id is empty",
        labels=[*_ID, "actor"],
    )
    family.add_metric(["", "supervisor"], root.mailbox)
    for tenant in root.children:
        if tenant.kind != "Tenant" or tenant.name not in tenant_ids:
            continue
        depths = {"tenant": tenant.mailbox, "consumer": 0, "worker": 0}
        for child in tenant.children:
            depths[child.kind.lower()] += child.mailbox
        for kind, depth in depths.items():
            family.add_metric([tenant.name, kind], depth)
    return family


def _add(
    family: HistogramMetricFamily,
    reading: Reading,
    labels: list[str],
    *,
    bounds: tuple[float, ...] | None = None,
) -> None:
    names = [*(str(float(bound)) for bound in bounds or reading.bounds), "+Inf"]
    family.add_metric(
        labels, list(zip(names, reading.counts, strict=True)), sum_value=reading.total
    )
