"""Looks after dead letters without being asked: none stays unknown, and no work half done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from tenantry.broker.port import (
    BacklogFullError,
    BrokerError,
    DeadLettersBusyError,
    MessagesRefusedError,
    Queues,
)
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.replay import Reprocessing
from tenantry.journal.port import JournalError
from tenantry.loops import PeriodicService
from tenantry.messages.port import MessageStoreError
from tenantry.unavailable import UnavailableError

log = structlog.get_logger(__name__)

EVERY: Final = 5.0
"""Seconds between looks. The broker's counts are up to 5 seconds old."""

KEPT_SECONDS: Final = 24 * 3600.0
"""How long a dead letter that was worked off is remembered after its message has gone."""

SWEEP_EVERY: Final = 3600.0
LONGEST_STEP: Final = 300.0
"""Seconds after which it is taken to hang: browsing takes its time, but goes on batch by batch."""

LONGEST_PAUSE: Final = 300.0
"""Seconds between two times that a queue is browsed that will not agree with its index."""

LONG: Final = 1.0
RESTS: Final = 9
"""Where a queue takes seconds to browse it is left alone for so many times as long: who has very
many dead letters, and lets a message expire now and then, would have all of them walked along for
ever."""


@dataclass(slots=True)
class _Doubt:
    """A queue whose count is not its index's: since how many looks, and when to browse it again."""

    queued: int
    listed: int
    looks: int = 0
    browses: int = 0
    not_before: float = 0.0


class DeadLetterKeeper(PeriodicService):
    """Compares queues with their index, and browses those that differ.

    A queue that holds more than is listed has messages the broker itself has dead-lettered
    (expired, over a length or delivery limit), or that another consumer has rejected: browsing
    lists them and tells the journal. Less: it forgets what was purged. Work that was begun before
    the daemon died is finished first.
    """

    def __init__(
        self,
        *,
        reprocessing: Reprocessing,
        index: DeadLetterIndex,
        queues: Queues,
        mine: Callable[[str], bool] = lambda _: True,
        every: float = EVERY,
    ) -> None:
        """Only tenants that are `mine` are looked after: of others another keeper does it."""
        super().__init__(self._look, every=every, longest=LONGEST_STEP, at_once=True)
        self._reprocessing = reprocessing
        self._index = index
        self._queues = queues
        self._mine = mine
        self._agreed: dict[str, int] = {}
        self._doubts: dict[str, _Doubt] = {}
        self._failing: dict[str, tuple[int, float]] = {}
        self._took: dict[str, tuple[float, float]] = {}
        """How long it took to browse a queue, and when that was over."""
        self._swept_at = time.monotonic()

    def look(self) -> None:
        """Look once at all tenants."""
        for tenant_id in sorted(filter(self._mine, self._index.unfinished())):
            self._browse(tenant_id)
        for tenant_id in self._differing():
            doubt = self._doubts[tenant_id]
            # Both counts are of a moment ago: what is on its way must not look like a difference.
            if doubt.looks < 2 or time.monotonic() < doubt.not_before or self._rests(tenant_id):
                continue
            doubt.browses += 1
            doubt.not_before = time.monotonic() + min(
                LONGEST_PAUSE, self._every * 2.0**doubt.browses
            )
            self._browse(tenant_id)
        if time.monotonic() - self._swept_at > SWEEP_EVERY:
            self._swept_at = time.monotonic()
            self._index.sweep(older_than=KEPT_SECONDS)

    def _look(self) -> None:
        """Look once; an outage is waited out."""
        try:
            self.look()
        except (BrokerError, MessageStoreError, JournalError) as error:
            log.debug("dead_letters.not_looked_after", error=str(error))

    def _differing(self) -> list[str]:
        """Name the tenants of which a queue's count is not its index's, now and before."""
        queued = {
            one: counts.dead_letters
            for one, counts in self._queues.queue_counts().items()
            if self._mine(one)
        }
        by_tenant: tuple[dict[str, Any], ...] = (
            self._agreed,
            self._doubts,
            self._failing,
            self._took,
        )
        for kept in by_tenant:
            for gone in kept.keys() - queued.keys():
                del kept[gone]
        # The index is asked only where something has changed: it may be long.
        open_questions = [one for one, count in queued.items() if self._agreed.get(one) != count]
        listed = self._index.counts(open_questions)
        for tenant_id in open_questions:
            there, known = queued[tenant_id], listed.get(tenant_id, 0)
            if there == known:
                self._agreed[tenant_id] = there
                self._doubts.pop(tenant_id, None)
                continue
            self._agreed.pop(tenant_id, None)
            doubt = self._doubts.setdefault(tenant_id, _Doubt(there, known))
            # Workers list before they reject, so while they do a queue may well be behind.
            moving = there < known and (doubt.queued, doubt.listed) != (there, known)
            doubt.queued, doubt.listed = there, known
            doubt.looks = 1 if moving else doubt.looks + 1
        # Nobody waits for one of whom much is to be browsed.
        return sorted(self._doubts, key=lambda one: (self._took.get(one, (0.0, 0.0))[0], one))

    def _rests(self, tenant_id: str) -> bool:
        took, ended = self._took.get(tenant_id, (0.0, 0.0))
        return time.monotonic() < ended + min(LONGEST_PAUSE, RESTS * took)

    def _browse(self, tenant_id: str) -> None:
        failures, not_before = self._failing.get(tenant_id, (0, 0.0))
        if self._ends() or time.monotonic() < not_before:
            return
        began = time.monotonic()
        try:
            self._reprocessing.look(tenant_id, stopping=self._ends)
        except DeadLettersBusyError:
            return  # the call that browses it does all this on the way
        except (BacklogFullError, MessagesRefusedError) as error:
            # This tenant's queues alone: what was begun goes on once they take messages again.
            log.info("dead_letters.replay_waits", tenant=tenant_id, error=str(error))
            self._put_off(tenant_id, failures)
            return
        except UnavailableError:
            raise  # as it would be with any tenant's
        except Exception as error:
            # One tenant's dead letters: the others' are looked after all the same.
            log.exception(
                "dead_letters.walk_failed",
                tenant=tenant_id,
                error=" ".join(str(error).split())[:500],
            )
            self._put_off(tenant_id, failures)
            return
        finally:
            ended = time.monotonic()
            if ended - began >= LONG:
                self._took[tenant_id] = ended - began, ended
            else:
                self._took.pop(tenant_id, None)
        self._failing.pop(tenant_id, None)

    def _put_off(self, tenant_id: str, failures: int) -> None:
        pause = min(LONGEST_PAUSE, self._every * 2.0 ** min(failures, 10))
        self._failing[tenant_id] = failures + 1, time.monotonic() + pause

    def _ends(self) -> bool:
        """Tell whether the end has come; browsing asks after each batch, and so goes on."""
        self.go_on()
        return self.stopping
