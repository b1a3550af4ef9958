"""The periodic work of a leading daemon."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from tenantry.actors.runtime_state import RuntimeState
from tenantry.assembly.api import LeaderWork
from tenantry.assembly.backends import Backends
from tenantry.control.port import SystemState
from tenantry.dead_letters.telling import FLUSH_EVERY
from tenantry.handlers.store import HandlingStore
from tenantry.isolation.sessions import LOOK_EVERY as SESSIONS_LOOK_EVERY
from tenantry.journal.parts import PART_EVENTS
from tenantry.journal.port import Metadata
from tenantry.messages.port import MessageStore
from tenantry.messages.retention import EVERY as RETENTION_EVERY
from tenantry.messages.retention import Retention
from tenantry.metrics.postgres import PostgresStatistics
from tenantry.metrics.recorder import Recorder
from tenantry.metrics.refusals import EVERY as REFUSALS_EVERY
from tenantry.metrics.statistics import LOOK_EVERY as STATISTICS_LOOK_EVERY
from tenantry.metrics.statistics import StatisticsKeeper
from tenantry.nodes.membership import Membership
from tenantry.process.threads import Schedules, Threads
from tenantry.settings import Settings

PARTS_LOOK_EVERY: Final = 60.0
"""Seconds between looks at whether the journal's open part has become too large or too old."""

SWEEP_EVERY: Final = 3600.0
"""Seconds between sweeps of records of attempts at messages that come no more."""


def begin_schedules(
    threads: Threads,
    stack: ExitStack,
    settings: Settings,
    backends: Backends,
    *,
    work: LeaderWork,
    membership: Membership,
    retention: Retention,
    runtime: RuntimeState,
    recorder: Recorder,
) -> None:
    """Start the periodic work of a running system on `threads`; `stack` ends it."""
    schedules = Schedules(threads, stack, lambda: runtime.state is SystemState.RUNNING)
    stores, by = backends.stores, Metadata(actor="daemon")
    audit = lambda go_on: work.auditor.audit_all(  # noqa: E731
        stores.directory, mine=membership.owns, go_on=go_on
    )
    prove = lambda go_on: (  # noqa: E731 - of all tenants at once, on one node
        work.prover.prove(metadata=by, go_on=go_on) if membership.is_first() else None
    )
    keeper = StatisticsKeeper(
        PostgresStatistics(stores.database), tenants=runtime.snapshots, recorder=recorder
    )
    runtime.latency = keeper.latency_p99
    sessions, letters = backends.tenants_sessions, stores.dead_letter_events
    schedules.every(settings.audit.every_seconds, "audit", audit)
    schedules.every(settings.isolation.verify_every_seconds, "isolation", prove)
    schedules.every(SESSIONS_LOOK_EVERY, "tenants-sessions", lambda _: sessions.turn())
    schedules.every(RETENTION_EVERY, "retention", retention.turn)
    stack.callback(retention.stop)
    # Periodic notes are written a last time when all is drained.
    schedules.at_last("statistics", keeper.end)
    schedules.every(STATISTICS_LOOK_EVERY, "statistics", keeper.turn)
    schedules.at_last("refusals", work.refusals.turn)
    schedules.every(REFUSALS_EVERY, "refusals", lambda _: work.refusals.turn())
    schedules.at_last("dead-letter-events", letters.flush)
    schedules.every(FLUSH_EVERY, "dead-letter-events", lambda _: letters.flush())
    schedules.every(PARTS_LOOK_EVERY, "journal-parts", lambda _: stores.parts.begin(PART_EVENTS))
    schedules.every(SWEEP_EVERY, "attempts", lambda _: _sweep_attempts(backends.handling))


def _sweep_attempts(store: MessageStore) -> None:
    """Forget attempts at messages that have not come for days; only handlers leave any."""
    if isinstance(store, HandlingStore):
        store.sweep()
