"""The worker: stores one batch at a time, for as long as that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from tenantry.actors.board import TenantBoard
from tenantry.actors.clock import Clock, tell
from tenantry.actors.messages import Batch, Begin, Ref, RetryWork, Work, WorkDone
from tenantry.actors.observer import NoObserver, Observer
from tenantry.actors.restarts import backoff
from tenantry.actors.reuse import Reuse
from tenantry.actors.supervision import SupervisedActor
from tenantry.dead_letters.port import DeadLetterIndex, RejectedMessage
from tenantry.domain import names
from tenantry.domain.events import MessageDeadLettered, MessageIdsReused
from tenantry.journal.port import ANY, EventStore, JournalUnavailableError, Metadata
from tenantry.messages.port import (
    MessageStore,
    StoreResult,
    StoreUnavailableError,
    Tried,
    Unstorable,
)
from tenantry.messages.validation import shown

log = structlog.get_logger("actors.worker")

LONGEST_BACKOFF: Final = 2.0
"""Seconds between attempts while the database is away: short, so that work goes on soon after."""

LONGEST_ERROR: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPorts:
    """What a worker stands on."""

    messages: MessageStore
    dead_letters: DeadLetterIndex
    journal: EventStore
    clock: Clock
    observer: Observer = field(default_factory=NoObserver)
    reuse: Reuse = field(default_factory=Reuse)
    patience: float | None = None
    """Seconds the store may take for a batch, where that is longer than others may be silent."""


class Worker(SupervisedActor):
    """Stores batches for its consumer, one after the other.

    While the store can't be reached the batch is tried again, with backoff, without end: the
    deliveries stay unacknowledged and nothing is lost. Any other failure ends the worker; the
    consumer still has the batch and gives it to another.
    """

    def __init__(
        self,
        *,
        name: str,
        tenant_id: str,
        parent: Ref,
        consumer: Ref,
        board: TenantBoard,
        ports: WorkerPorts,
    ) -> None:
        super().__init__(name=name, parent=parent, tenant_id=tenant_id)
        self._tenant = tenant_id
        self._consumer = consumer
        self._board = board
        self._ports = ports

    def handle(self, message: object) -> None:
        """Store a batch, or try again to."""
        match message:
            case Begin():
                pass
            case Work(batch=batch):
                self._attempt(batch, None, 0)
            case RetryWork(batch=batch, result=result, failures=failures):
                self._attempt(batch, result, failures)
            case _:
                raise TypeError(f"a worker can't handle {type(message).__name__}")

    def _attempt(self, batch: Batch, result: StoreResult | None, failures: int) -> None:
        try:
            if result is None:
                self.beat(self._ports.patience)
                began = self._ports.clock.now()
                result = self._ports.messages.store(
                    self._tenant,
                    [delivery.message for delivery in batch.deliveries],
                    _again(batch),
                )
                self.beat()
                self._observe(batch, result, self._ports.clock.now() - began)
                if result.reused:
                    self._tell_of_reuse(batch, result.reused)
            listed = 0
            if result.unstorable:
                self.beat()
                listed = self._record(batch, result.unstorable, again=failures > 0)
        except (StoreUnavailableError, JournalUnavailableError) as error:
            self.beat()
            self._board.store_down = True
            self._ports.observer.batch_delayed(self._tenant)
            delay = backoff(failures + 1, LONGEST_BACKOFF)
            log.warning(
                "worker.store_unavailable",
                error=str(error),
                failures=failures + 1,
                retry_in=round(delay, 2),
            )
            self._ports.clock.tell_later(
                delay,
                self.actor_ref,
                RetryWork(batch=batch, result=result, failures=failures + 1),
            )
            return
        self._board.store_down = False
        tell(
            self._consumer,
            WorkDone(worker=self.actor_ref, batch=batch, result=result, listed=listed),
        )

    def _observe(self, batch: Batch, result: StoreResult, seconds: float) -> None:
        observer = self._ports.observer
        if result.failures:
            observer.attempts_failed(self._tenant, result.failures)
        ended = batch.deliveries
        if result.held or result.left:
            others = {*result.left, *(one.index for one in result.held)}
            ended = [one for index, one in enumerate(ended) if index not in others]
        if ended:
            observer.batch_stored(self._tenant, ended, seconds)

    def _tell_of_reuse(self, batch: Batch, reused: Sequence[int]) -> None:
        """Say that ids came twice with another content: now and then, however often that is."""
        self._ports.observer.ids_reused(self._tenant, len(reused))
        count = self._ports.reuse.note(self._tenant, len(reused), self._ports.clock.now())
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
        try:
            self._ports.journal.append(
                names.dead_letter_journal_stream(self._tenant),
                [
                    MessageIdsReused(
                        tenant_id=self._tenant,
                        message_id=shown(message.id) or "",
                        topic=message.topic,
                        count=count,
                    )
                ],
                expected=ANY,
                metadata=Metadata(actor=f"{self._tenant}/{self.name}"),
            )
        except JournalUnavailableError as error:
            # It is counted and logged; nothing waits for it.
            log.debug("message.reuse_not_recorded", error=str(error))

    def _record(self, batch: Batch, unstorable: Sequence[Unstorable], *, again: bool) -> int:
        """Write down what can't be stored, in the index and the journal, before it is rejected.

        Gives how many dead letters have come of it. An event has an id that the index has made of
        the letter, so that a redelivery records nothing twice.
        """
        again = again or batch.attempt > 1
        kept = self._ports.dead_letters.add(
            self._tenant,
            [
                RejectedMessage(
                    batch.deliveries[one.index].message,
                    one.reason,
                    one.error[:LONGEST_ERROR],
                    max(one.attempts, batch.attempt),
                    (one.first_error or one.error)[:LONGEST_ERROR],
                    again or batch.deliveries[one.index].redelivered,
                )
                for one in unstorable
            ],
        )
        events = []
        for one in unstorable:
            message = batch.deliveries[one.index].message
            events.append(
                MessageDeadLettered(
                    tenant_id=self._tenant,
                    message_id=shown(message.id),
                    topic=message.topic,
                    partition=message.partition,
                    reason=one.reason,
                    error=one.error[:LONGEST_ERROR],
                    first_error=(one.first_error or one.error)[:LONGEST_ERROR],
                    attempts=max(one.attempts, batch.attempt),
                    size=len(message.body),
                )
            )
            log.warning(
                "message.dead_lettered",
                message_id=shown(message.id),
                topic=message.topic,
                reason=one.reason,
                error=one.error[:LONGEST_ERROR],
            )
        self.beat()
        began = self._ports.clock.now()
        recorded = self._ports.journal.append(
            names.dead_letter_journal_stream(self._tenant),
            events,
            expected=ANY,
            metadata=Metadata(actor=f"{self._tenant}/{self.name}"),
            ids=[one.event_id for one in kept],
        )
        self._ports.observer.journal_appended(len(recorded), self._ports.clock.now() - began)
        return sum(one.fresh for one in kept)


def _again(batch: Batch) -> Mapping[int, Tried | None]:
    """Tell the store which deliveries are not the first of their messages."""
    if batch.tried is not None:
        return dict(enumerate(batch.tried))
    return {index: None for index, one in enumerate(batch.deliveries) if one.redelivered}
