"""The worker: stores one batch at a time, however long that takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from tenantry.actors.backoff import LONGEST_OUTAGE_BACKOFF, backoff
from tenantry.actors.messages import Batch, Ref, Work, WorkDone
from tenantry.actors.ports import ActorPorts, Followed
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.actors.supervision import SupervisedActor, tell
from tenantry.dead_letters.port import RejectedMessage
from tenantry.domain import names
from tenantry.domain.events import MessageDeadLettered, MessageIdsReused
from tenantry.journal.port import ANY, Metadata
from tenantry.messages.port import StoreResult, Tried, Unstorable
from tenantry.messages.validation import shown
from tenantry.tracing import Span
from tenantry.unavailable import UnavailableError

log = structlog.get_logger("actors.worker")

LONGEST_ERROR: Final = 500

REUSE_REPORTED_EVERY: Final = 60.0
"""Seconds between two events about one tenant's reused ids; reuses in between are counted."""


class Worker(SupervisedActor):
    """Stores batches for its consumer, one after the other.

    While the store can't be reached the worker retries the batch, with backoff, without end: the
    deliveries stay unacknowledged and nothing is lost. Any other failure ends the worker; the
    consumer still has the batch and gives it to another worker.
    """

    def __init__(
        self,
        *,
        name: str,
        tenant_id: str,
        parent: Ref,
        consumer: Ref,
        runtime: TenantRuntimeState,
        ports: ActorPorts,
        reused_ids: ReusedIds,
    ) -> None:
        super().__init__(name=name, parent=parent, tenant_id=tenant_id)
        self._tenant = tenant_id
        self._consumer = consumer
        self._runtime = runtime
        self._ports = ports
        self._reused_ids = reused_ids

    def handle(self, message: object) -> None:
        """Store a batch, or retry it."""
        match message:
            case Work(batch=batch, result=result, failures=failures):
                self._attempt(batch, result, failures)
            case _:
                raise TypeError(f"a worker can't handle {type(message).__name__}")

    def _attempt(self, batch: Batch, result: StoreResult | None, failures: int) -> None:
        try:
            if result is None:
                self.beat(self._ports.store_patience)
                began = self._ports.clock.now()
                messages = [delivery.message for delivery in batch.deliveries]
                with self._ports.tracer.processing(self._tenant, messages) as span:
                    result = self._ports.messages.store(
                        self._tenant,
                        messages,
                        _again(batch),
                        in_order=batch.ticket is not None,
                        more=batch.more,
                        beside=batch.beside,
                    )
                self.beat()
                self._observe(batch, result, self._ports.clock.now() - began, span)
                if result.reused:
                    self._report_reuse(batch, result.reused)
            listed = 0
            if result.unstorable:
                self.beat()
                listed = self._record(batch, result.unstorable, again=failures > 0)
        except UnavailableError as error:
            self.beat()
            self._runtime.store_down = True
            self._ports.observer.batch_delayed(self._tenant)
            failures += 1
            delay = backoff(failures, LONGEST_OUTAGE_BACKOFF)
            log.warning(
                "worker.store_unavailable",
                error=str(error),
                failures=failures,
                retry_in=round(delay, 2),
            )
            again = Work(batch=batch, result=result, failures=failures)
            self._ports.clock.tell_later(delay, self.actor_ref, again)
            return
        self._runtime.store_down = False
        tell(
            self._consumer,
            WorkDone(worker=self.actor_ref, batch=batch, result=result, listed=listed),
        )

    def _observe(self, batch: Batch, result: StoreResult, seconds: float, span: Span) -> None:
        observer = self._ports.observer
        if result.failures:
            observer.attempts_failed(self._tenant, result.failures)
        ended, followed = batch.deliveries, span.followed
        if result.held or result.left:
            others = {*result.left, *(one.index for one in result.held)}
            ended = [one for index, one in enumerate(ended) if index not in others]
            followed = [one for one in followed if one[0] not in others]
        if not ended:
            return
        traces = [
            Followed(batch.deliveries[index].message.published_at_ms, trace_id)
            for index, trace_id in followed
        ]
        observer.batch_stored(self._tenant, ended, seconds, traces)

    def _report_reuse(self, batch: Batch, reused: Sequence[int]) -> None:
        """Report ids that came again with another content, at a limited rate."""
        self._ports.observer.ids_reused(self._tenant, len(reused))
        count = self._reused_ids.note(len(reused), self._ports.clock.now())
        if not count:
            return
        message = batch.deliveries[reused[0]].message
        log.warning(
            "message.id_reused",
            message_id=shown(message.id),
            topic=message.topic,
            count=count,
            remedy="something else is stored under it; what came now is not: ids must be unique",
        )
        event = MessageIdsReused(
            tenant_id=self._tenant,
            message_id=shown(message.id) or "",
            topic=message.topic,
            count=count,
        )
        try:
            self._ports.journal.append(
                names.dead_letter_journal_stream(self._tenant),
                [event],
                expected=ANY,
                metadata=self._metadata(),
            )
        except UnavailableError as error:
            # Harmless: the reuse is counted and logged, and nothing waits for the event.
            log.debug("message.reuse_not_recorded", error=str(error))

    def _record(self, batch: Batch, unstorable: Sequence[Unstorable], *, again: bool) -> int:
        """Record unstorable messages in the index and the journal, before they are rejected.

        Returns how many new dead letters there are. The index derives an event's id from the dead
        letter, so that a redelivery records nothing twice.
        """
        again = again or batch.attempt > 1
        rejected, events = [], []
        for one in unstorable:
            delivery = batch.deliveries[one.index]
            message, message_id = delivery.message, shown(delivery.message.id)
            error = one.error[:LONGEST_ERROR]
            first_error = (one.first_error or one.error)[:LONGEST_ERROR]
            attempts = max(one.attempts, batch.attempt)
            seen = again or delivery.redelivered
            rejected.append(
                RejectedMessage(message, one.reason, error, attempts, first_error, seen)
            )
            events.append(
                MessageDeadLettered(
                    tenant_id=self._tenant,
                    message_id=message_id,
                    topic=message.topic,
                    partition=message.partition,
                    reason=one.reason,
                    error=error,
                    first_error=first_error,
                    attempts=attempts,
                    size=len(message.body),
                    ordered=batch.ticket is not None,
                )
            )
        kept = self._ports.dead_letters.add(self._tenant, rejected)
        self.beat()
        began = self._ports.clock.now()
        told = self._ports.dead_letter_events.tell(
            self._tenant,
            events,
            [one.event_id for one in kept],
            self._metadata(),
            fresh=[one.fresh for one in kept],
        )
        self._ports.observer.journal_appended(told.recorded, self._ports.clock.now() - began)
        # No more lines than events: a sender can make thousands of dead letters a second.
        for event in events[: len(events) - told.put_off]:
            log.warning(
                "message.dead_lettered",
                message_id=event.message_id,
                topic=event.topic,
                reason=event.reason,
                error=event.error,
            )
        return sum(one.fresh for one in kept)

    def _metadata(self) -> Metadata:
        return Metadata(actor=f"{self._tenant}/{self.name}")


class ReusedIds:
    """Counts a tenant's reused ids, for occasional reports. Shared by its workers' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._not_before = 0.0

    def note(self, count: int, now: float) -> int:
        """Count messages; return how many are to be reported now, 0 for none."""
        with self._lock:
            self._count += count
            if now < self._not_before:
                return 0
            count, self._count = self._count, 0
            self._not_before = now + REUSE_REPORTED_EVERY
            return count


def _again(batch: Batch) -> Mapping[int, Tried | None]:
    """Return which deliveries, by index, were delivered before, and their earlier tries."""
    again = {index: None for index, one in enumerate(batch.deliveries) if one.redelivered}
    if batch.tried is None:
        return again
    return again | {index: one for index, one in enumerate(batch.tried) if one is not None}
