"""Makes metrics of the system's state at the moment of a scrape; nothing is kept in between."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from tenantry.audit.auditor import Latest
from tenantry.broker.adapter import Ring
from tenantry.control.port import ActorStatus, Role, SystemState, SystemStatus, TenantRuntime
from tenantry.domain.tenant import Lifecycle
from tenantry.isolation.port import LatestProof
from tenantry.metrics.recorder import LATENCY_MS, Example, Reading, Recorder
from tenantry.nodes.port import NodeState

PARKED: Final = "parked"

STUCK: Final = "stuck"

_NOT_SEEN: Final = frozenset({None, Lifecycle.DELETED})
"""Lifecycles of tenants without metrics: totals not known yet, or deleted."""

_STATES: Final = (
    *(one.value for one in Lifecycle if one is not Lifecycle.DELETED),
    PARKED,
)
_LATENCY_BOUNDS: Final = tuple(bound / 1000 for bound in LATENCY_MS)


class Family(NamedTuple):
    """A metric: its type, its help text, and its labels."""

    type: str
    text: str
    labels: tuple[str, ...] = ()


_TENANT: Final = ("tenant_id",)

FAMILIES: Final[Mapping[str, Family]] = {
    "tenantry_build": Family("info", "What runs here", ("version",)),
    "tenantry_ready": Family("gauge", "1 while consuming, as /readyz tells"),
    "tenantry_is_leader": Family(
        "gauge", "1 while this daemon holds the term, 0 while it is a standby"
    ),
    "tenantry_term": Family("gauge", "The term's number; it goes up whenever a daemon takes it"),
    "tenantry_node_info": Family("gauge", "1, with this node's name", ("node", "version")),
    "tenantry_nodes": Family("gauge", "Nodes on this database in each state", ("state",)),
    "tenantry_state": Family("gauge", "1 for the state the daemon is in", ("state",)),
    "tenantry_stuck_actors": Family("gauge", "Actors that hang and are about to be replaced"),
    "tenantry_abandoned_threads": Family("gauge", "Threads of replaced actors that still hang"),
    "tenantry_tenants": Family("gauge", "Tenants in each state", ("state",)),
    "tenant_workers_current": Family(
        "gauge", "Workers that may store a tenant's messages now", _TENANT
    ),
    "queue_messages_pending": Family(
        "gauge", "Messages waiting in a tenant's queues, by the broker's count", _TENANT
    ),
    "tenantry_unsettled": Family(
        "gauge", "Deliveries taken from the broker and not acknowledged yet", _TENANT
    ),
    "tenantry_held": Family("gauge", "Deliveries that wait for another attempt", _TENANT),
    "tenantry_consuming": Family("gauge", "1 while a tenant's queues are consumed", _TENANT),
    "tenantry_parked": Family(
        "gauge", "1 for a tenant that was given up, until it is resumed", _TENANT
    ),
    "messages_processed": Family(
        "counter", "Messages brought to an end since the tenant was created", (*_TENANT, "outcome")
    ),
    "tenantry_messages_removed": Family(
        "counter",
        "Stored messages removed since the tenant was created, beyond its limits in age or rows",
        (*_TENANT, "reason"),
    ),
    "tenantry_publishes_refused": Family(
        "counter",
        "Calls of publishing over HTTP refused since the tenant was created, beyond its limits",
        (*_TENANT, "reason"),
    ),
    "tenantry_mailbox_depth": Family(
        "gauge",
        "Messages waiting for an actor; for the supervisor, tenant_id is empty",
        (*_TENANT, "actor"),
    ),
    "tenantry_message_latency_seconds": Family(
        "histogram", "Time from a message's publishing to its commit", _TENANT
    ),
    "tenantry_audit_difference": Family(
        "gauge", "Messages by which the tenant's latest audit did not add up; 0 is right", _TENANT
    ),
    "tenantry_audit_timestamp_seconds": Family(
        "gauge", "When the tenant was last audited", _TENANT
    ),
    "tenantry_isolation_failures": Family(
        "gauge",
        "What the latest proof of isolation found possible that must not be, or the reverse",
    ),
    "tenantry_isolation_unjudged": Family(
        "gauge", "Tenants of whom the latest proof of isolation gave no verdict"
    ),
    "tenantry_isolation_timestamp_seconds": Family(
        "gauge", "When the isolation of all tenants was last proven"
    ),
    "tenantry_disk_free_bytes": Family(
        "gauge", "Bytes that are free where the embedded PostgreSQL keeps its data"
    ),
    "tenantry_disk_size_bytes": Family("gauge", "Bytes of that file system in all"),
    "tenantry_queue_ring_bytes": Family(
        "gauge", "Size of the embedded broker's queues, all segments together"
    ),
    "tenantry_queue_segments_held": Family(
        "gauge", "Empty segments of the embedded broker that a session keeps from being truncated"
    ),
    "tenantry_messages_swept": Family(
        "counter", "Messages removed because their tenant was deleted before they were committed"
    ),
    "tenantry_failed_attempts": Family(
        "counter", "Attempts at a message that its handler has failed", (*_TENANT, "reason")
    ),
    "tenantry_message_ids_reused": Family(
        "counter", "Messages under an id under which something else is stored", _TENANT
    ),
    "tenantry_handler_seconds": Family(
        "histogram", "Time a run of a topic's handler took", ("topic",)
    ),
    "tenantry_handler_threads_abandoned": Family(
        "gauge", "Threads left behind whose handlers hang"
    ),
    "tenantry_provider_keys_age_seconds": Family(
        "gauge", "Time since the keys of the provider of tokens were fetched"
    ),
    "tenantry_batch_messages": Family("histogram", "Messages in a stored batch"),
    "tenantry_batches_waiting": Family(
        "gauge", "Batches that wait for their tenant's turn to be stored"
    ),
    "tenantry_backlog_part": Family(
        "gauge", "The part of the time in which a backlog is worked off beside quiet tenants"
    ),
    "tenantry_backlogs_held_to": Family(
        "gauge", "Full batches a second of a backlog of weight 1, at most, for other nodes' sake"
    ),
    "tenantry_store_seconds": Family("histogram", "Time a batch took to commit"),
    "tenantry_journal_append_seconds": Family("histogram", "Time an append to the journal took"),
    "tenantry_store_retries": Family(
        "counter", "Attempts at a batch that failed as the database could not be reached"
    ),
    "tenantry_journal_events": Family("counter", "Events appended to the journal"),
    "tenantry_spans_lost": Family(
        "counter", "Spans that were recorded and did not arrive", ("process", "reason")
    ),
    "tenantry_restarts": Family("counter", "Actors that failed and were replaced", ("kind",)),
    "tenantry_drift": Family(
        "counter", "Things of tenants found changed behind the daemon's back", ("kind", "outcome")
    ),
    "tenantry_stuck": Family(
        "counter", "Actors that hung and were replaced, and loops that hung", ("kind",)
    ),
    "tenantry_broker_reconnects": Family(
        "counter", "Times a connection to the broker was opened again", ("connection",)
    ),
}
"""Every metric, by its name; a test compares docs/metrics.md with this."""

L = TypeVar("L", bound=tuple[str, ...])
"""The values of a metric's labels."""


def family(name: str, values: Mapping[L, float]) -> Metric:
    """Make a counter or a gauge from its values."""
    kind, text, labels = FAMILIES[name]
    made: Any = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
        name, text, labels=labels
    )
    for of, value in values.items():
        made.add_metric(of, value)
    return made  # type: ignore[no-any-return]


def histogram(
    name: str, readings: Mapping[L, Reading], bounds: tuple[float, ...] | None = None
) -> Metric:
    """Make a histogram from readings; `bounds` are those of the readings, in seconds."""
    _, text, labels = FAMILIES[name]
    made = HistogramMetricFamily(name, text, labels=labels)
    for of, reading in readings.items():
        names = [*(str(float(bound)) for bound in bounds or reading.bounds), "+Inf"]
        made.add_metric(of, _buckets(names, reading), sum_value=reading.total)
    return made


def _buckets(
    names: Sequence[str], reading: Reading
) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """Return the buckets, each with its exemplar where there is one."""
    plain = list(zip(names, reading.counts, strict=True))
    if not reading.examples:
        return [*plain]
    return [
        (name, count) if example is None else (name, count, _exemplar(example))
        for (name, count), example in zip(plain, reading.examples, strict=True)
    ]


def _exemplar(example: Example) -> Exemplar:
    return Exemplar({"trace_id": example.trace_id}, example.value, example.at)


class SystemCollector(Collector):
    """The daemon's own metrics.

    `status` is called once a scrape, so all metrics show one state. `reconnects` counts for each
    connection to the broker how often it was reopened after a loss; `audits` gives the outcome of
    each tenant's latest audit.
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
        removed: Callable[[], Mapping[tuple[str, str], int]] = dict,
        refused: Callable[[], Mapping[tuple[str, str], int]] = dict,
        waiting: Callable[[], int] = int,
        backlog_part: Callable[[], float] = lambda: 1.0,
        backlogs_held_to: Callable[[], float] = float,
        lost_spans: Callable[[], Mapping[tuple[str, str], int]] = dict,
        keys_age: Callable[[], float | None] = lambda: None,
        data_directory: Path | None = None,
    ) -> None:
        """With a `data_directory`, the metrics tell how full its file system is.

        `lost_spans` counts by process and reason; `keys_age` is in seconds, None without provider.
        """
        self._status = status
        self._recorder = recorder
        self._reconnects = dict(reconnects)
        self._audits = audits
        self._abandoned_handlers = abandoned_handlers
        self._isolation = isolation
        self._ring = ring
        self._removed = removed
        self._refused = refused
        self._waiting = waiting
        self._backlog_part = backlog_part
        self._backlogs_held_to = backlogs_held_to
        self._lost_spans = lost_spans
        self._keys_age = keys_age
        self._data_directory = data_directory

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as of now."""
        status = self._status()
        tenants = [one for one in status.tenants.values() if one.lifecycle not in _NOT_SEEN]
        ids = [tenant.tenant_id for tenant in tenants]
        yield from _system(status)
        yield _states(tenants)
        yield from _tenants(tenants)
        yield family("tenantry_mailbox_depth", _mailboxes(status.tree, frozenset(ids)))
        readings = {(one,): self._recorder.latency(one) for one in ids}
        yield histogram(
            "tenantry_message_latency_seconds",
            {of: reading for of, reading in readings.items() if reading is not None},
            _LATENCY_BOUNDS,
        )
        yield from _audits(self._audits(), ids)
        yield from _isolation(self._isolation())
        yield from _ring(self._ring())
        yield from _disk(self._data_directory)
        if (age := self._keys_age()) is not None:
            yield family("tenantry_provider_keys_age_seconds", {(): age})
        there = frozenset(ids)
        yield family("tenantry_messages_removed", _of_those(there, self._removed()))
        yield family("tenantry_publishes_refused", _of_those(there, self._refused()))
        yield from self._recorded(ids)

    def _recorded(self, tenant_ids: Iterable[str]) -> Iterator[Metric]:
        recorder = self._recorder
        failed = {
            (one, reason): count
            for one in tenant_ids
            for reason, count in recorder.failed_attempts(one).items()
        }
        yield family("tenantry_failed_attempts", failed)
        reused = {(one,): recorder.reused_ids(one) for one in tenant_ids}
        yield family("tenantry_message_ids_reused", reused)
        handlers = {(topic,): reading for topic, reading in recorder.handlers().items()}
        yield histogram("tenantry_handler_seconds", handlers)
        yield family("tenantry_handler_threads_abandoned", {(): self._abandoned_handlers()})
        yield histogram("tenantry_batch_messages", {(): recorder.batch_sizes.read()})
        yield family("tenantry_batches_waiting", {(): self._waiting()})
        yield family("tenantry_backlog_part", {(): self._backlog_part()})
        yield family("tenantry_backlogs_held_to", {(): self._backlogs_held_to()})
        yield histogram("tenantry_store_seconds", {(): recorder.store_seconds.read()})
        yield histogram("tenantry_journal_append_seconds", {(): recorder.append_seconds.read()})
        yield family("tenantry_store_retries", {(): recorder.delays})
        yield family("tenantry_journal_events", {(): recorder.events})
        yield family("tenantry_spans_lost", self._lost_spans())
        yield family("tenantry_restarts", _by_one(recorder.failures()))
        yield family("tenantry_drift", recorder.drift())
        yield family("tenantry_stuck", _by_one(recorder.stuck()))
        reconnects = {connection: count() for connection, count in self._reconnects.items()}
        yield family("tenantry_broker_reconnects", _by_one(reconnects))


def _of_those(
    tenant_ids: frozenset[str], counts: Mapping[tuple[str, str], int]
) -> Mapping[tuple[str, str], int]:
    """Return the counts of some tenants, by tenant and reason."""
    return {of: count for of, count in counts.items() if of[0] in tenant_ids}


def _by_one(values: Mapping[str, float]) -> Mapping[tuple[str], float]:
    """Return values keyed by their only label."""
    return {(label,): value for label, value in values.items()}


def _isolation(latest: LatestProof | None) -> Iterator[Metric]:
    if latest is not None:
        yield family("tenantry_isolation_failures", {(): latest.failures})
        yield family("tenantry_isolation_unjudged", {(): latest.unjudged})
        yield family("tenantry_isolation_timestamp_seconds", {(): latest.at})


def _ring(ring: Ring | None) -> Iterator[Metric]:
    if ring is not None:
        yield family("tenantry_queue_ring_bytes", {(): ring.bytes})
        yield family("tenantry_queue_segments_held", {(): ring.held})
        yield family("tenantry_messages_swept", {(): ring.swept})


def _disk(directory: Path | None) -> Iterator[Metric]:
    if directory is None:
        return
    with suppress(OSError):
        told = os.statvfs(directory)
        yield family("tenantry_disk_free_bytes", {(): told.f_bavail * told.f_frsize})
        yield family("tenantry_disk_size_bytes", {(): told.f_blocks * told.f_frsize})


def _audits(latest: Mapping[str, Latest], tenant_ids: Iterable[str]) -> Iterator[Metric]:
    audited = {(one,): latest[one] for one in tenant_ids if one in latest}
    differences = {of: found.difference for of, found in audited.items()}
    yield family("tenantry_audit_difference", differences)
    yield family("tenantry_audit_timestamp_seconds", {of: one.at for of, one in audited.items()})


def _system(status: SystemStatus) -> Iterator[Metric]:
    build = InfoMetricFamily("tenantry_build", FAMILIES["tenantry_build"].text)
    build.add_metric([], {"version": status.version})
    yield build
    yield family("tenantry_ready", {(): float(status.ready)})
    yield family("tenantry_is_leader", {(): float(status.role is Role.LEADER)})
    if status.term is not None:
        yield family("tenantry_term", {(): status.term.number})
    if status.node is not None:
        yield family("tenantry_node_info", {(status.node, status.version): 1.0})
        nodes = Counter(one.state for one in status.nodes)
        yield family("tenantry_nodes", {(one.value,): nodes[one] for one in NodeState})
    states = {(one.value,): float(one is status.state) for one in SystemState}
    yield family("tenantry_state", states)
    yield family("tenantry_stuck_actors", {(): _stuck(status.tree)})
    yield family("tenantry_abandoned_threads", {(): len(status.abandoned)})


def _stuck(actor: ActorStatus) -> int:
    return (actor.state == STUCK) + sum(_stuck(child) for child in actor.children)


def _states(tenants: Iterable[TenantRuntime]) -> Metric:
    counts = Counter(PARKED if tenant.parked else str(tenant.lifecycle) for tenant in tenants)
    return family("tenantry_tenants", {(name,): counts[name] for name in _STATES})


def _tenants(tenants: Iterable[TenantRuntime]) -> Iterator[Metric]:
    by_id = {(one.tenant_id,): one for one in tenants}
    workers = {of: one.workers_current for of, one in by_id.items()}
    yield family("tenant_workers_current", workers)
    pending = {of: one.pending for of, one in by_id.items() if one.pending is not None}
    yield family("queue_messages_pending", pending)
    yield family("tenantry_unsettled", {of: one.unsettled for of, one in by_id.items()})
    yield family("tenantry_held", {of: one.held for of, one in by_id.items()})
    yield family("tenantry_consuming", {of: float(one.consuming) for of, one in by_id.items()})
    parked = {of: float(one.parked is not None) for of, one in by_id.items()}
    yield family("tenantry_parked", parked)
    processed: dict[tuple[str, str], float] = {}
    for (tenant_id,), one in by_id.items():
        processed[tenant_id, "stored"] = one.stored
        processed[tenant_id, "duplicate"] = one.duplicates
        processed[tenant_id, "dead_lettered"] = one.dead_lettered
    yield family("messages_processed", processed)


def _mailboxes(root: ActorStatus, tenant_ids: frozenset[str]) -> Mapping[tuple[str, str], float]:
    """Count waiting messages by tenant and kind of actor; the workers of a tenant together.

    Empty mailboxes are left out: with thousands of tenants nearly all are empty.
    """
    found: dict[tuple[str, str], float] = {("", "supervisor"): root.mailbox}
    for tenant in root.children:
        if tenant.kind != "Tenant" or tenant.name not in tenant_ids:
            continue
        depths = {"tenant": tenant.mailbox, "consumer": 0, "worker": 0}
        for child in tenant.children:
            depths[child.kind.lower()] += child.mailbox
        found |= {(tenant.name, kind): depth for kind, depth in depths.items() if depth}
    return found
