"""A tenant's own client that has a batch confirmed as a whole, by whatever kind of broker."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.ledger.client import EVERY
from tests.ledger.entries import Draft, Entry, Maker, Target, entry, mixed
from tests.ledger.record import Record
from tests.waiting import DEADLINE

BATCH = 50
RETRY_AFTER = 0.05


@dataclass(frozen=True, slots=True)
class Message:
    """A draft, and what the ledger writes down of it."""

    draft: Draft
    entry: Entry


class BatchClient(ABC):
    """Publishes on a thread; what was not confirmed it publishes again.

    Its methods are those of `tests.ledger.client.Client`.
    """

    away: ClassVar[tuple[type[Exception], ...]]
    """Errors after which it connects again."""

    wrong: ClassVar[tuple[type[Exception], ...]]
    """Errors that end it, unless it is patient."""

    def __init__(
        self,
        tenant_id: str,
        url: str,
        targets: Sequence[Target],
        *,
        rate: float,
        window: int = BATCH,
        limit: int | None = None,
        make: Maker = mixed,
        record: Record | None = None,
        patient: bool = False,
    ) -> None:
        self.tenant_id = tenant_id
        self.confirmed: dict[str, Entry] = {}
        self.sent: dict[str, Entry] = {}
        self.errors: list[str] = []
        self.connections = 0
        self._url = url
        self._targets = itertools.cycle(targets)
        self._rate = rate
        self._window = min(window, BATCH)
        self._limit = limit
        self._make = make
        self._record = record
        self._patient = patient
        self._count = 0
        self._name = uuid.uuid4().hex
        self._began = 0.0
        self._finishing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client-{tenant_id}")

    def start(self) -> None:
        self._began = time.monotonic()
        self._thread.start()

    @property
    def publishing(self) -> bool:
        return not (self._finishing.is_set() or self.abandoned)

    @property
    def abandoned(self) -> bool:
        return self._abandoned.is_set()

    def finish(self, timeout: float = DEADLINE) -> None:
        """Send nothing new, and return once everything sent is confirmed."""
        self._finishing.set()
        self._thread.join(timeout)
        self.abandon()
        assert not self.errors, self.errors[:3]
        assert self.sent.keys() == self.confirmed.keys()

    def abandon(self) -> None:
        """End at once, whatever is unconfirmed; harmless after `finish`."""
        self._abandoned.set()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        batch: list[Message] = []
        while not self._abandoned.is_set():
            try:
                with self._connect() as connection:
                    self.connections += 1
                    while not self._abandoned.is_set():
                        batch = batch or self._next()
                        if batch:
                            self._publish(connection, batch)
                            self._confirm(batch)
                            batch = []
                        elif self._finishing.is_set():
                            return
                        else:
                            self._abandoned.wait(EVERY)
            except self.away:
                self._abandoned.wait(RETRY_AFTER)
            except self.wrong as error:
                if not self._patient:
                    self.errors.append(repr(error))
                    return
                self._abandoned.wait(RETRY_AFTER)

    def _next(self) -> list[Message]:
        if self._finishing.is_set():
            return []
        due = int((time.monotonic() - self._began) * self._rate) - self._count
        if self._limit is not None:
            due = min(due, self._limit - self._count)
        return [self._one() for _ in range(min(due, self._window))]

    def _one(self) -> Message:
        self._count += 1
        draft = self._make(self.tenant_id, self._count)
        message = Message(
            draft, entry(draft, next(self._targets), sender=self._name, number=self._count)
        )
        self.sent[draft.key] = message.entry
        if self._record is not None:
            self._record.sent(self.tenant_id, draft.key, message.entry)
        return message

    def _confirm(self, batch: Sequence[Message]) -> None:
        if self._record is not None:
            self._record.confirmed(self.tenant_id, [one.draft.key for one in batch])
        for one in batch:
            self.confirmed[one.draft.key] = one.entry

    @abstractmethod
    def _connect(self) -> AbstractContextManager[Any]:
        """Connect with the tenant's own credentials."""

    @abstractmethod
    def _publish(self, connection: Any, batch: Sequence[Message]) -> None:
        """Publish a batch, and return once all of it is confirmed."""
