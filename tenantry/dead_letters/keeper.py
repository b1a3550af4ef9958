"""Keeps the index of dead letters true to the queues, and finishes interrupted work."""

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
"""Seconds between checks. The broker's counts are up to 5 seconds old."""

KEPT_SECONDS: Final = 24 * 3600.0
"""How long a settled dead letter is remembered after its message has left the queue."""

SWEEP_EVERY: Final = 3600.0
LONGEST_STEP: Final = 300.0
"""Seconds without progress after which it counts as stuck; browsing progresses by batches."""

LONGEST_PAUSE: Final = 300.0
"""Seconds between two browses of a queue whose count stays different from its index's."""

LONG: Final = 1.0
RESTS: Final = 9
"""A queue rests for this many times as long as its browse took: otherwise a tenant with very many
dead letters, and an expired message now and then, would have all of them browsed without end."""


@dataclass(slots=True)
class _Doubt:
    """A queue whose count differs from its index's: for how many checks, and its next browse."""

    queued: int
    listed: int
    looks: int = 0
    browses: int = 0
    not_before: float = 0.0


class DeadLetterKeeper(PeriodicService):
    """Compares queues with their index, and browses those that differ.

    If a queue holds more messages than are listed, the broker itself has dead-lettered some
    (expired, over a length or delivery limit), or another consumer has rejected them: browsing
    lists them and records them in the journal. If it holds fewer, browsing removes purged ones from
    the index. Work that was interrupted by a crash is finished first.
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
        """`mine` tells whether this node keeps a tenant's index; other nodes keep the others'."""
        super().__init__(self._look, every=every, longest=LONGEST_STEP, at_once=True)
        self._reprocessing = reprocessing
        self._index = index
        self._queues = queues
        self._mine = mine
        self._agreed: dict[str, int] = {}
        self._doubts: dict[str, _Doubt] = {}
        self._failing: dict[str, tuple[int, float]] = {}
        self._took: dict[str, tuple[float, float]] = {}
        """How long the latest browse of a queue took, and when it ended."""
        self._swept_at = time.monotonic()

    def look(self) -> None:
        """Check all tenants once."""
        for tenant_id in sorted(filter(self._mine, self._index.unfinished())):
            self._browse(tenant_id)
        for tenant_id in self._differing():
            doubt = self._doubts[tenant_id]
            # Both counts are a moment old: messages under way must not look like a difference.
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
        """Check once; during an outage, do nothing."""
        try:
            self.look()
        except (BrokerError, MessageStoreError, JournalError) as error:
            log.debug("dead_letters.not_looked_after", error=str(error))

    def _differing(self) -> list[str]:
        """Name the tenants whose queue's count has differed from its index's twice in a row."""
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
        # Query the index only after a change: it may be long.
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
            # Workers list a message before they reject it, so the queue may be behind for a while.
            moving = there < known and (doubt.queued, doubt.listed) != (there, known)
            doubt.queued, doubt.listed = there, known
            doubt.looks = 1 if moving else doubt.looks + 1
        # Other tenants do not wait for one with much to browse.
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
            return  # another call browses the queue, and does all of this as well
        except (BacklogFullError, MessagesRefusedError) as error:
            # A trouble of this tenant's queues alone: the work continues once they take messages.
            log.info("dead_letters.replay_waits", tenant=tenant_id, error=str(error))
            self._put_off(tenant_id, failures)
            return
        except UnavailableError:
            raise  # it would be the same with any other tenant
        except Exception as error:
            # An error with one tenant's dead letters must not keep the others' from being checked.
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
        """Tell whether to stop. Browsing asks after each batch, which also counts as progress."""
        self.go_on()
        return self.stopping
