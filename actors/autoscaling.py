"""Autoscaling: how many workers a tenant should have, by its backlog and by earlier raises."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain.commands import ResizeWorkers
from tenantry.domain.limits import Limits
from tenantry.domain.tenant import Lifecycle

LOOK_SECONDS: Final = 5.0
"""Seconds between two looks: the broker's counts may be that old."""

LONGEST_WAIT: Final = 1.0
"""Seconds that a message may wait in the backlog before more workers are wanted."""

SATURATED: Final = 0.8
"""The busy share of workers' time from which more workers are worth a try."""

CALM: Final = 0.5
"""The busy share of workers' time below which fewer workers are enough."""

CALM_SECONDS: Final = 60.0
"""Seconds of calm before workers are taken away, so that a soon burst still finds them."""

ROOMY: Final = 0.7
"""The greatest busy share that the remaining workers are to have."""

WORTHWHILE: Final = 0.25
"""The share of a proportional gain that added workers must bring, or they are taken back."""

FIRST_HOLD: Final = 60.0
LONGEST_HOLD: Final = 960.0
"""Seconds without another raise after a raise that brought nothing: doubled each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A tenant as it was at one moment, `at` in seconds of a monotonic clock.

    `busy_seconds` and `settled` (messages) only ever rise while the consumer is the same;
    `backlog` counts the waiting messages, None where that is not known.
    """

    at: float
    workers: int
    busy_seconds: float
    settled: int
    backlog: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """Another number of workers, and why."""

    workers: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raise:
    """A raise on trial: workers `before` and `after`, and the messages a second before (`rate`)."""

    before: int
    rate: float
    after: int


class Autoscaler:
    """Follows one tenant's load.

    Workers are doubled while all are busy and messages wait longer than `LONGEST_WAIT`. At the
    next look the added workers must have raised the rate, or they are taken back: they don't help
    where the database is the bottleneck. Workers are removed once fewer have been enough for
    `CALM_SECONDS`. Between `CALM` and `SATURATED` nothing changes.
    """

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._trial: _Raise | None = None
        self._hold = FIRST_HOLD
        self._held_until = -math.inf
        self._calm_since: float | None = None
        self._busiest = 0.0

    def look(self, sample: Sample, limits: Limits) -> Resizing | None:
        """Return the wanted number of workers, if it differs from the present one."""
        last, trial = self._last, self._trial
        if last is None or not _follows(last, sample, trial):
            self._last = sample
            self._trial = self._calm_since = None
            return None
        seconds = sample.at - last.at
        busy = (sample.busy_seconds - last.busy_seconds) / seconds
        rate = (sample.settled - last.settled) / seconds
        if not rate and busy >= SATURATED * sample.workers:
            return None  # All workers are on long work: its rate is known once some is done.
        self._last, self._trial = sample, None
        wanted = self._judged(trial, rate, busy, sample) or self._wanted(rate, busy, sample, limits)
        if wanted is None or limits.within(wanted.workers) == sample.workers:
            return None
        self._calm_since = None
        workers = limits.within(wanted.workers)
        if workers > sample.workers:
            self._trial = _Raise(before=sample.workers, rate=rate, after=workers)
        return Resizing(workers=workers, reason=wanted.reason)

    def _judged(
        self, trial: _Raise | None, rate: float, busy: float, sample: Sample
    ) -> Resizing | None:
        """Take back added workers that have not raised the rate."""
        if trial is None or busy < SATURATED * sample.workers or not sample.backlog:
            return None  # There was too little work for all of them: nothing is proven.
        proportional = trial.after / trial.before - 1
        if rate >= trial.rate * (1 + WORTHWHILE * proportional):
            self._hold = FIRST_HOLD
            return None
        self._held_until = sample.at + self._hold
        self._hold = min(LONGEST_HOLD, self._hold * 2)
        return Resizing(
            workers=trial.before,
            reason=f"{trial.after} workers stored {rate:.0f} messages/s, "
            f"{trial.before} had stored {trial.rate:.0f}: workers are not what is missing",
        )

    def _wanted(self, rate: float, busy: float, sample: Sample, limits: Limits) -> Resizing | None:
        workers, backlog = sample.workers, sample.backlog
        if busy >= SATURATED * workers:
            self._calm_since = None
            late = backlog is not None and rate > 0 and backlog > rate * LONGEST_WAIT
            if not late or workers >= limits.workers.stop - 1 or sample.at < self._held_until:
                return None
            reason = (
                f"{backlog} messages wait, {rate:.0f} are stored a second, all workers are busy"
            )
            return Resizing(workers=workers * 2, reason=reason)
        if busy > CALM * workers or backlog is None or backlog > rate * LONGEST_WAIT:
            self._calm_since = None
            return None
        if self._calm_since is None:
            self._calm_since, self._busiest = sample.at, busy
            return None
        self._busiest = max(self._busiest, busy)
        if sample.at - self._calm_since < CALM_SECONDS:
            return None
        enough = max(1, math.ceil(self._busiest / ROOMY))
        return Resizing(
            workers=min(workers, enough),
            reason=f"{self._busiest:.1f} of {workers} workers were busy at most "
            f"for {CALM_SECONDS:.0f} s",
        )


def _follows(last: Sample, sample: Sample, trial: _Raise | None) -> bool:
    """Tell whether the work between the samples was done by this number of workers."""
    return (
        sample.workers == (last.workers if trial is None else trial.after)
        and sample.at > last.at
        and sample.busy_seconds >= last.busy_seconds
        and sample.settled >= last.settled
    )


class Autoscaling:
    """Autoscales the tenants of a node whose limits ask for it; used by the supervisor."""

    def __init__(self) -> None:
        self._tenants: dict[str, Autoscaler] = {}

    def look(self, now: float, runtimes: Iterable[TenantRuntimeState]) -> list[ResizeWorkers]:
        """Sample the tenants' load; return the commands that resize some of them."""
        followed: dict[str, Autoscaler] = {}
        commands = []
        for runtime in runtimes:
            state = runtime.state
            if state is None or not state.limits.autoscaled or not _works(runtime):
                continue
            scaler = self._tenants.get(runtime.tenant_id) or Autoscaler()
            followed[runtime.tenant_id] = scaler
            wanted = scaler.look(_sample(now, runtime, state.workers), state.limits)
            if wanted is not None:
                commands.append(
                    ResizeWorkers(
                        tenant_id=runtime.tenant_id, workers=wanted.workers, reason=wanted.reason
                    )
                )
        self._tenants = followed
        return commands


def _works(runtime: TenantRuntimeState) -> bool:
    """Tell whether a tenant's load shows how many workers it needs: no outage holds it up."""
    active = runtime.state is not None and runtime.state.lifecycle is Lifecycle.ACTIVE
    return active and runtime.consuming and not runtime.store_down


def _sample(now: float, runtime: TenantRuntimeState, workers: int) -> Sample:
    ready = runtime.pending()
    return Sample(
        at=now,
        workers=workers,
        busy_seconds=runtime.busy.seconds(now),
        settled=runtime.stored + runtime.duplicates + runtime.dead_lettered,
        backlog=None if ready is None else ready + runtime.buffered,
    )
