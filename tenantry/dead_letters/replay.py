"""Replays and discards dead letters: no fault loses a message, or does the work twice.

Each batch of the queue takes these steps: store the intent in the index; publish the messages to
their own topic again (a replay); record it in the journal; settle the intent in the index; remove
the messages from the queue. After an interruption the next call that browses the queue finishes the
work: an open intent is carried out again under the same number, by which a message published twice
is recognised; settled messages are only removed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import UUID, uuid4

import structlog

from tenantry.broker.port import (
    BacklogFullError,
    BrokerError,
    BrokerUnavailableError,
    DeadLetterBrowser,
    DeadLetters,
    Outgoing,
    Publishing,
    QueuedDeadLetter,
    QueueSpec,
)
from tenantry.dead_letters.port import (
    EVERYTHING,
    DeadLetterIndex,
    Intent,
    KnownDeadLetter,
    Preview,
    QueueMessage,
    RejectedMessage,
    Selection,
    Work,
)
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.domain import names
from tenantry.domain.events import (
    DeadLettersDiscarded,
    DeadLettersReplayed,
    Event,
    MessageDeadLettered,
)
from tenantry.journal.port import ANY, EventStore, Metadata
from tenantry.messages.headers import (
    OUT_OF_ORDER_HEADER,
    REPLAY_HEADER,
    REPLAYS_HEADER,
    JsonHeaders,
    UnreadableHeadersError,
)
from tenantry.messages.port import Incoming
from tenantry.messages.validation import shown
from tenantry.telemetry.logging import Sparing

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

BATCH: Final = 100
"""The most dead letters in a batch."""

BROWSE_SECONDS: Final = 45.0
"""How long one call may browse a queue; the rest is left to the next call."""

GRACE_SECONDS: Final = 60.0
"""How long a rejected message may take to reach the dead-letter queue."""

MAX_REPLAYS: Final = 10
"""Replays of a dead letter after which another takes `force`: it is likely to fail again."""

ITSELF: Final = Metadata(actor="dead-letters")
"""The actor in events of messages that the broker itself has dead-lettered."""

_EXACT_TIME: Final = "timestamp_in_ms"

_WHY: Final = {
    "rejected": "rejected by another consumer than the daemon",
    "expired": "its time to live ended before it was stored",
    "maxlen": "its queue was full",
    "delivery_limit": "delivered again more often than its queue allows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessed:
    """The outcome of a call: how many dead letters were done, and why others were not.

    `worn` have reached the limit of replays; `refused` are not accepted by the broker. `complete`
    unless the time or the limit ended the call with dead letters left.
    """

    count: int = 0
    worn: int = 0
    refused: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """A message in the queue: its place in the batch, and its dead letter in the index."""

    place: int
    known: KnownDeadLetter
    queued: QueuedDeadLetter

    @property
    def id(self) -> UUID:
        return self.known.id

    @property
    def message(self) -> Incoming:
        return self.queued.message


@dataclass(slots=True)
class _Job:
    """A running call: the selection of a tenant's dead letters, and the outcome so far."""

    tenant_id: str
    work: Work | None
    which: Selection
    metadata: Metadata
    _: KW_ONLY
    most: int | None = None
    force: bool = False
    stopping: Callable[[], bool] = lambda: False
    browse: UUID = field(default_factory=uuid4)
    wanted: set[UUID] | None = None
    count: int = 0
    worn: int = 0
    refused: int = 0
    found: Counter[str] = field(default_factory=Counter)
    """The reasons of dead letters that the index did not know."""
    met: set[UUID] = field(default_factory=set)
    removed: set[UUID] = field(default_factory=set)

    @property
    def room(self) -> int:
        """How many more dead letters may be taken."""
        return BATCH if self.most is None else self.most - self.count

    @property
    def done(self) -> bool:
        """Whether the rest of the queue can hold nothing that is selected."""
        found_all = self.wanted is not None and self.wanted <= self.removed
        return self.room <= 0 or found_all or self.stopping()

    def copies(self, batch: Sequence[_Listed]) -> set[int]:
        """Give the places of listed messages whose dead letter came up before."""
        found = set()
        for one in batch:
            if one.known.listed and one.id in self.met:
                found.add(one.place)
            elif one.known.listed:
                self.met.add(one.id)
        return found

    def means(self, one: _Listed) -> bool:
        """Tell whether a dead letter is selected."""
        known = one.known
        return self.which.holds(one.message, known.id, known.reason, known.dead_lettered_at)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Reprocessing:
    """Replays and discards tenants' dead letters. Callable from any thread; blocks up to a minute.

    A call does not wait for another one that browses the same queue: it raises
    `DeadLettersBusyError`. `on_listed` is called with the number of a tenant's dead letters that
    browsing has listed.
    """

    index: DeadLetterIndex
    queues: DeadLetters
    publishing: Publishing
    journal: EventStore
    events: DeadLetterEvents
    publish_timeout: float
    seconds: float = BROWSE_SECONDS
    max_replays: int = MAX_REPLAYS
    on_listed: Callable[[str, int], object] = lambda _tenant_id, _count: None
    ordered: Callable[[str], Collection[str]] = lambda _tenant_id: ()
    """Tells which topics of a tenant are in order."""
    sparing: Sparing = field(default_factory=Sparing)

    def preview(self, tenant_id: str, which: Selection) -> Preview:
        """Preview a replay or discard of a selection."""
        return self.index.preview(tenant_id, which, most_replays=self.max_replays)

    def replay(
        self,
        tenant_id: str,
        which: Selection,
        metadata: Metadata,
        *,
        most: int | None = None,
        force: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Reprocessed:
        """Publish dead letters to their own topic and partition again, marked as replayed.

        A dead letter that was replayed `max_replays` times stays, unless `force`. Once `stopping`
        is true, the rest is left to the next call.
        """
        job = _Job(
            tenant_id, Work.REPLAY, which, metadata, most=most, force=force, stopping=stopping
        )
        return self._run(job)

    def discard(
        self,
        tenant_id: str,
        which: Selection,
        metadata: Metadata,
        *,
        most: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Reprocessed:
        """Discard dead letters; `stopping` as for `replay`."""
        return self._run(
            _Job(tenant_id, Work.DISCARD, which, metadata, most=most, stopping=stopping)
        )

    def look(self, tenant_id: str, *, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Browse the whole queue: finish interrupted work, and list unknown messages.

        Gives whether it reached the end before `stopping` became true.
        """
        return self._run(_Job(tenant_id, None, EVERYTHING, ITSELF, stopping=stopping)).complete

    def _run(self, job: _Job) -> Reprocessed:
        if job.which.names is not None:
            job.wanted = self.index.named(job.tenant_id, job.which.names)
            if not job.wanted:
                return Reprocessed()
        began, ended = time.monotonic(), False
        try:
            with self.queues.browse(job.tenant_id) as browser:
                while not ended and not job.done and time.monotonic() - began < self.seconds:
                    ended = not self._step(job, browser)
        finally:
            if job.found:
                _log.warning(
                    "dead_letters.found",
                    tenant=job.tenant_id,
                    count=job.found.total(),
                    reasons=dict(job.found),
                )
        if browser.gone:
            self.index.gone(job.tenant_id, job.removed)
        if ended and browser.complete:
            self._forget_missing(job, time.monotonic() - began)
        return Reprocessed(
            count=job.count,
            worn=job.worn,
            refused=job.refused,
            complete=ended or (job.done and job.room > 0 and not job.stopping()),
        )

    def _step(self, job: _Job, browser: DeadLetterBrowser) -> bool:
        """Process the next batch of the queue; tell whether there was one."""
        queued = browser.next(BATCH)
        if not queued:
            return False
        known = self.index.lookup(
            job.tenant_id, [_unknown(one) for one in queued], browse=job.browse
        )
        batch = [
            _Listed(place=place, known=of_it, queued=one)
            for place, (of_it, one) in enumerate(zip(known, queued, strict=True))
        ]
        self._tell_of_new(job, batch)
        # A dead letter has one message: a second one was published twice.
        copies = job.copies(batch)
        batch = [one for one in batch if one.place not in copies]
        past = [one for one in batch if not one.known.listed]
        begun = [
            one
            for one in batch
            if one.known.intent and (one.known.listed or one.known.failed_again)
        ]
        done = self._finish_begun(job, begun)
        free = [one for one in batch if one.known.listed and one.known.intent is None]
        if job.work is not None:
            done += self._take(job, job.work, free)
        acted = {one.id for one in done}
        leaving = [*past, *(one for one in batch if one.known.listed and one.id in acted)]
        browser.remove([*copies, *(one.place for one in leaving)])
        job.removed |= {one.id for one in leaving}
        return True

    def _finish_begun(self, job: _Job, begun: Sequence[_Listed]) -> list[_Listed]:
        """Finish what an earlier call has begun; give the messages to remove."""
        done: list[_Listed] = []
        for intent, of_it in groupby(
            sorted(begun, key=lambda one: str(one.known.intent)), key=attrgetter("known.intent")
        ):
            acted = self._finish(job.tenant_id, intent, _once(of_it), ITSELF)
            job.count += sum(intent.work is job.work and job.means(one) for one in acted)
            done += acted
        return done

    def _take(self, job: _Job, work: Work, free: Sequence[_Listed]) -> list[_Listed]:
        """Do the work of this call."""
        chosen = _once(one for one in free if job.means(one))
        replayed = int(work is Work.REPLAY)
        if replayed and not job.force:
            fit = [one for one in chosen if one.known.replays < self.max_replays]
            job.worn += len(chosen) - len(fit)
            chosen = fit
        chosen = chosen[: job.room]
        if not chosen:
            return []
        intent = Intent(uuid4(), work)
        self.index.begin(job.tenant_id, [one.id for one in chosen], intent)
        begun = [
            replace(one, known=one.known._replace(replays=one.known.replays + replayed))
            for one in chosen
        ]
        acted = self._finish(job.tenant_id, intent, begun, job.metadata)
        job.count += len(acted)
        job.refused += len(chosen) - len(acted)
        return acted

    def _finish(
        self, tenant_id: str, intent: Intent, begun: Sequence[_Listed], metadata: Metadata
    ) -> list[_Listed]:
        """Carry an intent out, record it in the journal, settle it.

        Gives the messages to remove. A dead letter whose replay has failed already is settled, but
        its message in the queue is the replay's, and stays.
        """
        failed = [one for one in begun if one.known.failed_again]
        acted = waiting = [one for one in begun if not one.known.failed_again]
        if intent.work is Work.REPLAY:
            acted = self._publish(tenant_id, waiting)
        sent = {one.id for one in acted}
        if unsent := [one.id for one in waiting if one.id not in sent]:
            self.index.withdraw(tenant_id, unsent)
        if not acted and not failed:
            return []
        ids = tuple(str(one) for one in self.index.intended(tenant_id, intent.id))
        kind = DeadLettersReplayed if intent.work is Work.REPLAY else DeadLettersDiscarded
        event = kind(tenant_id=tenant_id, count=len(ids), ids=ids)
        self._append(tenant_id, [event], metadata, [intent.id])
        self.index.settle(tenant_id, [one.id for one in (*acted, *failed)])
        return acted

    def _publish(self, tenant_id: str, batch: Sequence[_Listed]) -> list[_Listed]:
        """Publish dead letters again; give those that the broker has confirmed. The others stay.

        Raises `BrokerUnavailableError`; the broker may have accepted some by then.
        """
        ordered = self.ordered(tenant_id)
        outgoing = [
            _outgoing(tenant_id, one, ordered=one.message.topic in ordered) for one in batch
        ]
        try:
            self.publishing.publish(outgoing, timeout=self.publish_timeout)
        except BacklogFullError:
            # Nothing was accepted. A part may fit where the whole batch never does.
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            sent = self._publish(tenant_id, batch[:half])
            with suppress(BacklogFullError):
                sent += self._publish(tenant_id, batch[half:])
            return sent
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            if len(batch) > 1:
                return [sent for one in batch for sent in self._publish(tenant_id, [one])]
            left_out = self.sparing.left_out(tenant_id)
            if left_out is not None:
                _log.warning(
                    "dead_letter.not_replayed",
                    tenant=tenant_id,
                    letter=str(batch[0].id),
                    error=str(error),
                    left_out=left_out,
                )
            return []
        return list(batch)

    def _tell_of_new(self, job: _Job, batch: Sequence[_Listed]) -> None:
        """Record dead letters in the journal that only the broker knew of."""
        tenant_id = job.tenant_id
        new = _once(one for one in batch if one.known.listed and not one.known.recorded)
        if not new:
            return
        ids = [one.known.event_id for one in new]
        ordered = self.ordered(tenant_id)
        events = [_died(tenant_id, one, ordered=one.message.topic in ordered) for one in new]
        told = self.events.tell(tenant_id, events, ids, ITSELF)
        self.index.recorded(tenant_id, [one.id for one in new])
        self.on_listed(tenant_id, told.recorded + told.put_off)
        job.found.update(one.known.reason for one in new)

    def _append(
        self, tenant_id: str, events: Sequence[Event], metadata: Metadata, ids: Sequence[UUID]
    ) -> int:
        """Append to the journal; give how many of the events were new."""
        stream = names.dead_letter_journal_stream(tenant_id)
        return len(self.journal.append(stream, events, expected=ANY, metadata=metadata, ids=ids))

    def _forget_missing(self, job: _Job, seconds: float) -> None:
        missing = self.index.forget_missing(
            job.tenant_id, browse=job.browse, older_than=seconds + GRACE_SECONDS
        )
        if missing:
            _log.warning("dead_letters.missing", tenant=job.tenant_id, count=missing)


def _once(batch: Iterable[_Listed]) -> list[_Listed]:
    """Leave out further messages of the same dead letter."""
    first: dict[UUID, _Listed] = {}
    for one in batch:
        first.setdefault(one.id, one)
    return list(first.values())


def _unknown(queued: QueuedDeadLetter) -> QueueMessage:
    """Give a queued message with the reason to list if the index does not know it."""
    why = _WHY.get(queued.reason, f"dead-lettered by the broker: {queued.reason}")
    return QueueMessage(RejectedMessage(queued.message, queued.reason, why, 0), queued.died_at)


def _died(tenant_id: str, one: _Listed, *, ordered: bool) -> MessageDeadLettered:
    """Make the event of a dead letter that only the broker knew of."""
    message, known = one.message, one.known
    return MessageDeadLettered(
        tenant_id=tenant_id,
        message_id=shown(message.id),
        topic=message.topic,
        partition=message.partition,
        reason=known.reason,
        error=known.error,
        first_error=known.first_error or known.error,
        attempts=known.attempts,
        size=len(message.body),
        ordered=ordered,
    )


def _outgoing(tenant_id: str, one: _Listed, *, ordered: bool) -> Outgoing:
    """Make the replay of a message: unchanged, to its own topic and partition, and marked."""
    message, properties = one.message, one.queued.properties
    marks: dict[str, object] = {REPLAY_HEADER: str(one.id), REPLAYS_HEADER: one.known.replays}
    if ordered:
        marks[OUT_OF_ORDER_HEADER] = True
    headers: Mapping[str, object] = marks
    if properties is None:
        own = message.headers or {}
        if message.published_at_ms is not None and not _tells_time(own):
            marks[_EXACT_TIME] = message.published_at_ms
        # The sender's headers are sent again unchanged, whether they can be read or not.
        headers = own.with_others(marks) if isinstance(own, JsonHeaders) else {**own, **marks}
    return Outgoing(
        exchange=names.exchange_name(tenant_id),
        routing_key=QueueSpec.of(tenant_id, message.topic, message.partition).routing_key,
        body=message.body,
        # Without an id it gets one now, so that the store stores it once.
        message_id=str(one.id) if message.id is None else message.id,
        content_type=message.content_type,
        headers=headers,
        properties=properties,
    )


def _tells_time(headers: Mapping[str, object]) -> bool:
    try:
        return _EXACT_TIME in headers
    except UnreadableHeadersError:
        return False
