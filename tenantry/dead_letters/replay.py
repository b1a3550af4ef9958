"""Dead letters, replayed or discarded: nothing lost, and nothing done twice, whatever breaks.

For each batch of the queue, in this order: the index notes what is intended; the messages are
published to where they came from (a replay); the journal tells of it; the index settles it; the
queue lets them go. What breaks in between is made good by the next walk, whoever begins it: what
was intended is done again, under the same number, which is how a message that went out twice is
known; what is settled is only removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final
from uuid import uuid4

import structlog

from tenantry.broker.port import DeadLetterBrowser, DeadLetters, Publishing
from tenantry.dead_letters.job import BATCH, Job, Reprocessed, once
from tenantry.dead_letters.letters import Letter, describe, found, told
from tenantry.dead_letters.port import (
    EVERYTHING,
    DeadLetterIndex,
    Intent,
    Preview,
    Selection,
    Work,
)
from tenantry.dead_letters.sending import send
from tenantry.domain import names
from tenantry.domain.events import DeadLettersDiscarded, DeadLettersReplayed, Event
from tenantry.journal.port import ANY, EventStore, Metadata

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

WALK_SECONDS: Final = 45.0
"""How long one call may walk; what is left then is for the next call."""

GRACE_SECONDS: Final = 60.0
"""How long a rejected message may take to its queue."""

MAX_REPLAYS: Final = 10
"""How often a letter is replayed before it takes `force`: what fails so often will fail again."""

ITSELF: Final = Metadata(actor="dead-letters")
"""Who does what nobody asked for: telling the journal of what the broker has dead-lettered."""


class Reprocessing:
    """Works off tenants' dead letters. Calls block, for a minute at most; from any thread.

    None waits for another's walk along the same queue: it raises `DeadLettersBusyError` at once.
    """

    def __init__(
        self,
        *,
        index: DeadLetterIndex,
        queues: DeadLetters,
        publishing: Publishing,
        journal: EventStore,
        publish_timeout: float,
        seconds: float = WALK_SECONDS,
        max_replays: int = MAX_REPLAYS,
        on_listed: Callable[[str, int], None] = lambda _tenant_id, _count: None,
    ) -> None:
        """`on_listed` hears how many letters of a tenant a walk has made known."""
        self._index = index
        self._queues = queues
        self._publishing = publishing
        self._journal = journal
        self._publish_timeout = publish_timeout
        self._seconds = seconds
        self._max_replays = max_replays
        self._on_listed = on_listed

    def preview(self, tenant_id: str, which: Selection) -> Preview:
        """Tell what a replay or discard of a selection would come to."""
        return self._index.preview(tenant_id, which, most_replays=self._max_replays)

    def replay(
        self,
        tenant_id: str,
        which: Selection,
        metadata: Metadata,
        *,
        most: int | None = None,
        force: bool = False,
    ) -> Reprocessed:
        """Publish letters to their own topic and partition again, marked as replayed.

        One that has been replayed `max_replays` times stays, unless `force`.
        """
        return self._run(
            Job(
                tenant_id=tenant_id,
                work=Work.REPLAY,
                which=which,
                metadata=metadata,
                most=most,
                force=force,
            )
        )

    def discard(
        self, tenant_id: str, which: Selection, metadata: Metadata, *, most: int | None = None
    ) -> Reprocessed:
        """Throw letters away."""
        return self._run(
            Job(
                tenant_id=tenant_id,
                work=Work.DISCARD,
                which=which,
                metadata=metadata,
                most=most,
                force=False,
            )
        )

    def look(self, tenant_id: str, *, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Walk along the whole queue: finish what was begun, list what is not known.

        Gives whether it came to the end, before it was `stopping`.
        """
        job = Job(
            tenant_id=tenant_id,
            work=None,
            which=EVERYTHING,
            metadata=ITSELF,
            most=None,
            force=False,
            stopping=stopping,
        )
        return self._run(job).complete

    def _run(self, job: Job) -> Reprocessed:
        if job.which.names is not None:
            job.wanted = self._index.named(job.tenant_id, job.which.names)
            if not job.wanted:
                return Reprocessed()
        began, ended = time.monotonic(), False
        with self._queues.browse(job.tenant_id) as browser:
            while not ended and not job.done and time.monotonic() - began < self._seconds:
                ended = not self._step(job, browser)
        if browser.gone:
            self._index.gone(job.tenant_id, job.removed)
        if ended and browser.complete:
            self._forget_missing(job, time.monotonic() - began)
        return Reprocessed(
            count=job.count,
            worn=job.worn,
            refused=job.refused,
            complete=ended or (job.done and job.room > 0 and not job.stopping()),
        )

    def _step(self, job: Job, browser: DeadLetterBrowser) -> bool:
        """Work off the next messages; tell whether there were any."""
        batch = browser.next(BATCH)
        if not batch:
            return False
        met = self._index.lookup(job.tenant_id, [found(one) for one in batch], browse=job.browse_id)
        letters = [
            Letter(place=place, met=one, queued=queued)
            for place, (one, queued) in enumerate(zip(met, batch, strict=True))
        ]
        self._tell_of_new(job.tenant_id, letters)
        # A letter has one message: another of the same is a copy that went out twice.
        copies = job.copies(letters)
        letters = [one for one in letters if one.place not in copies]
        past = [one for one in letters if not one.met.listed]
        begun = [
            one for one in letters if one.met.intent and (one.met.listed or one.met.failed_again)
        ]
        done = self._finish_begun(job, begun)
        free = [one for one in letters if one.met.listed and one.met.intent is None]
        if job.work is not None:
            done += self._take(job, job.work, free)
        acted = {one.met.id for one in done}
        leaving = [*past, *(one for one in letters if one.met.listed and one.met.id in acted)]
        browser.remove([*copies, *(one.place for one in leaving)])
        job.removed |= {one.met.id for one in leaving}
        return True

    def _finish_begun(self, job: Job, letters: Sequence[Letter]) -> list[Letter]:
        """Do what an earlier walk has begun; give the letters to be removed."""
        done: list[Letter] = []
        for intent, of_it in groupby(
            sorted(letters, key=lambda one: str(one.met.intent)), key=attrgetter("met.intent")
        ):
            fresh = once(of_it)
            acted = self._finish(job.tenant_id, intent, fresh, ITSELF)
            counts = [one for one in acted if intent.work is job.work and job.means(one)]
            job.count += len(counts)
            done += acted
        return done

    def _take(self, job: Job, work: Work, letters: Sequence[Letter]) -> list[Letter]:
        """Begin and finish what is asked for."""
        chosen = once(one for one in letters if job.means(one))
        if work is Work.REPLAY and not job.force:
            worn = [one for one in chosen if one.met.replays >= self._max_replays]
            job.worn += len(worn)
            chosen = [one for one in chosen if one.met.replays < self._max_replays]
        chosen = chosen[: job.room]
        if not chosen:
            return []
        intent = Intent(uuid4(), work)
        self._index.begin(job.tenant_id, [one.met.id for one in chosen], intent)
        begun = [one.begun(work) for one in chosen]
        acted = self._finish(job.tenant_id, intent, begun, job.metadata)
        job.count += len(acted)
        job.refused += len(chosen) - len(acted)
        return acted

    def _finish(
        self, tenant_id: str, intent: Intent, letters: Sequence[Letter], metadata: Metadata
    ) -> list[Letter]:
        """Do what was intended with letters, tell the journal, settle them.

        Gives those whose messages can go. One whose replay has failed already is settled, but
        its message in the queue is that of the replay.
        """
        failed = [one for one in letters if one.met.failed_again]
        waiting = [one for one in letters if not one.met.failed_again]
        acted = waiting
        if intent.work is Work.REPLAY:
            acted = send(self._publishing, tenant_id, waiting, timeout=self._publish_timeout)
        sent = {one.met.id for one in acted}
        if unsent := [one.met.id for one in waiting if one.met.id not in sent]:
            self._index.withdraw(tenant_id, unsent)
        if not acted and not failed:
            return []
        ids = tuple(str(one) for one in self._index.intended(tenant_id, intent.id))
        self._journal.append(
            names.dead_letter_journal_stream(tenant_id),
            [_event(tenant_id, intent.work, ids)],
            expected=ANY,
            metadata=metadata,
            ids=[intent.id],
        )
        self._index.settle(tenant_id, [one.met.id for one in (*acted, *failed)])
        return acted

    def _tell_of_new(self, tenant_id: str, letters: Sequence[Letter]) -> None:
        """Tell the journal of letters that only the broker knew of."""
        unknown = once(one for one in letters if one.met.listed and not one.met.recorded)
        if not unknown:
            return
        recorded = self._journal.append(
            names.dead_letter_journal_stream(tenant_id),
            [told(tenant_id, one) for one in unknown],
            expected=ANY,
            metadata=ITSELF,
            ids=[one.met.event_id for one in unknown],
        )
        self._index.recorded(tenant_id, [one.met.id for one in unknown])
        self._on_listed(tenant_id, len(recorded))
        _log.warning(
            "dead_letters.found", tenant=tenant_id, count=len(unknown), reasons=describe(unknown)
        )

    def _forget_missing(self, job: Job, seconds: float) -> None:
        missing = self._index.forget_missing(
            job.tenant_id, browse=job.browse_id, older_than=seconds + GRACE_SECONDS
        )
        if missing:
            _log.warning("dead_letters.missing", tenant=job.tenant_id, count=missing)


def _event(tenant_id: str, work: Work, ids: tuple[str, ...]) -> Event:
    if work is Work.REPLAY:
        return DeadLettersReplayed(tenant_id=tenant_id, count=len(ids), ids=ids)
    return DeadLettersDiscarded(tenant_id=tenant_id, count=len(ids), ids=ids)
