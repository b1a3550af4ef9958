"""Dead letters, replayed or discarded: nothing lost, and nothing stored twice, whatever breaks.

For each message of the queue, in this order: it is published to where it came from (a replay), the
journal tells of it, the index settles it, the queue lets it go. What breaks in between is made good
by the next walk: a settled message is only removed, any other is taken anew, and its id, which it
keeps, lets the store take it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import structlog

from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    DeadLetters,
    DeadLetterWalk,
    Outgoing,
    Publishing,
)
from tenantry.domain import names
from tenantry.domain.events import DeadLettersDiscarded, DeadLettersReplayed, Event
from tenantry.journal.port import ANY, EventStore, Metadata
from tenantry.messages.dead_letters import (
    REPLAY_HEADER,
    DeadLetterIndex,
    Judged,
    Known,
    Outcome,
    fingerprint,
)
from tenantry.messages.port import Incoming

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

BATCH: Final = 100
WALK_SECONDS: Final = 45.0
"""How long one call may walk; what is left then is for the next call."""

GRACE_SECONDS: Final = 60.0
"""How long a rejected message may take to its queue."""

_BROKERS_OWN: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")
_EXACT_TIME: Final = "timestamp_in_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message in the queue, and its letter's id."""

    place: int
    id: UUID
    message: Incoming


class Reprocessing:
    """Works off tenants' dead letters. Calls block, for a minute at most; from any thread."""

    def __init__(
        self,
        *,
        index: DeadLetterIndex,
        queues: DeadLetters,
        publishing: Publishing,
        journal: EventStore,
        publish_timeout: float,
        seconds: float = WALK_SECONDS,
    ) -> None:
        self._index = index
        self._queues = queues
        self._publishing = publishing
        self._journal = journal
        self._publish_timeout = publish_timeout
        self._seconds = seconds

    def replay(self, tenant_id: str, ids: Collection[str] | None, metadata: Metadata) -> int:
        """Publish letters to their own topic and partition again; None means all of them.

        Each has the header `x-tenantry-replay` then. Gives how many there were.
        """

        def publish(letters: Sequence[Letter]) -> list[Letter]:
            return self._publish(tenant_id, letters)

        return self._walk(tenant_id, ids, publish, Outcome.REPLAYED, metadata)

    def discard(self, tenant_id: str, ids: Collection[str] | None, metadata: Metadata) -> int:
        """Throw letters away; None means all of them. Gives how many there were."""
        return self._walk(tenant_id, ids, list, Outcome.DISCARDED, metadata)

    def _walk(
        self,
        tenant_id: str,
        ids: Collection[str] | None,
        act: Callable[[Sequence[Letter]], list[Letter]],
        outcome: Outcome,
        metadata: Metadata,
    ) -> int:
        wanted = None if ids is None else self._index.named(tenant_id, ids)
        began, walk_id = time.monotonic(), uuid4()
        removed: set[UUID] = set()
        count, ended = 0, False
        if wanted is not None and not wanted:
            return 0
        with self._queues.walk(tenant_id) as walk:
            while not ended and time.monotonic() - began < self._seconds:
                if wanted is not None and wanted <= removed:
                    break
                letters, settled = self._next(tenant_id, walk, walk_id)
                ended = not letters and not settled
                chosen = [one for one in letters if wanted is None or one.id in wanted]
                if chosen:
                    chosen = act(chosen)
                    taken = {one.id for one in chosen}
                    self._journal.append(
                        names.dead_letter_journal_stream(tenant_id),
                        [_event(tenant_id, outcome, taken)] if taken else [],
                        expected=ANY,
                        metadata=metadata,
                    )
                    self._index.settle(tenant_id, taken, outcome)
                count += len(chosen)
                walk.remove([one.place for one in (*chosen, *settled)])
                removed |= {one.id for one in (*chosen, *settled)}
        if walk.gone:
            self._index.forget(tenant_id, removed)
        if ended and walk.complete:
            self._forget_missing(tenant_id, walk_id, time.monotonic() - began)
        return count

    def _next(
        self, tenant_id: str, walk: DeadLetterWalk, walk_id: UUID
    ) -> tuple[list[Letter], list[Letter]]:
        """Give the next messages that are listed, and those that only have to be removed."""
        batch = walk.next(BATCH)
        if not batch:
            return [], []
        keys = [fingerprint(message) for message in batch]
        known = dict(self._index.find(tenant_id, keys, walk=walk_id))
        strangers = {
            key: Judged(message, "rejected", "rejected by another consumer than the daemon", 0)
            for key, message in zip(keys, batch, strict=True)
            if key not in known
        }
        if strangers:
            new = self._index.keep(tenant_id, list(strangers.values()))
            known |= {key: Known(one, False) for key, one in zip(strangers, new, strict=True)}
        letters: list[Letter] = []
        settled: list[Letter] = []
        for place, (key, message) in enumerate(zip(keys, batch, strict=True)):
            letter = Letter(place=place, id=known[key].id, message=message)
            (settled if known[key].settled else letters).append(letter)
        return letters, settled

    def _publish(self, tenant_id: str, letters: Sequence[Letter]) -> list[Letter]:
        """Publish letters and give those the broker has confirmed; one that can't be, stays."""
        try:
            self._send(tenant_id, letters)
        except BrokerUnavailableError:
            raise
        except BrokerError as error:
            if len(letters) == 1:
                _log.warning(
                    "dead_letter.not_replayed",
                    tenant=tenant_id,
                    letter=str(letters[0].id),
                    error=str(error),
                )
                return []
            return [one for letter in letters for one in self._publish(tenant_id, [letter])]
        return list(letters)

    def _send(self, tenant_id: str, letters: Sequence[Letter]) -> None:
        self._publishing.publish(
            [_outgoing(tenant_id, letter) for letter in letters], timeout=self._publish_timeout
        )

    def _forget_missing(self, tenant_id: str, walk_id: UUID, seconds: float) -> None:
        missing = self._index.forget_missing(
            tenant_id, walk=walk_id, older_than=seconds + GRACE_SECONDS
        )
        if missing:
            _log.warning("dead_letters.missing", tenant=tenant_id, count=missing)


def _event(tenant_id: str, outcome: Outcome, taken: Collection[UUID]) -> Event:
    ids = tuple(sorted(map(str, taken)))
    if outcome is Outcome.REPLAYED:
        return DeadLettersReplayed(tenant_id=tenant_id, ids=ids)
    return DeadLettersDiscarded(tenant_id=tenant_id, ids=ids)


def _outgoing(tenant_id: str, letter: Letter) -> Outgoing:
    message = letter.message
    headers: dict[str, object] = {
        name: value
        for name, value in (message.headers or {}).items()
        if not name.startswith(_BROKERS_OWN)
    }
    headers[REPLAY_HEADER] = str(letter.id)
    if message.published_at_ms is not None:
        headers.setdefault(_EXACT_TIME, message.published_at_ms)
    default = message.topic == names.DEFAULT_TOPIC
    return Outgoing(
        exchange=names.stream_name(tenant_id),
        routing_key=message.topic if default else f"{message.topic}.{message.partition}",
        body=message.body,
        # Without an id of its own it gets one now, so that the store takes it once.
        message_id=str(letter.id) if message.id is None else message.id,
        content_type=message.content_type,
        headers=headers,
    )
