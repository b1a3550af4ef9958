"""What each client of a tenant's own does: it sends at a rate, and notes what was confirmed."""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.ledger.entries import Draft, Entry, Maker, Target, entry, mixed
from tests.ledger.record import Record
from tests.waiting import DEADLINE

WINDOW = 200
"""Messages a client leaves unconfirmed at most."""


@dataclass(frozen=True, slots=True)
class Message:
    """A draft, and what the ledger writes down of it."""

    draft: Draft
    entry: Entry


class Sender(ABC):
    """A tenant's own client, on a thread; what was not confirmed it publishes again.

    What can't be published is an error, or tried again by a `patient` one. `start` and `finish` are
    the owner's to call. `sent` and `confirmed` go by the messages' keys.
    """

    def __init__(
        self,
        tenant_id: str,
        url: str,
        targets: Sequence[Target],
        *,
        rate: float,
        window: int = WINDOW,
        limit: int | None = None,
        make: Maker = mixed,
        record: Record | None = None,
        patient: bool = False,
    ) -> None:
        """`rate` is messages a second; of `limit` messages the last is followed by none."""
        self.tenant_id = tenant_id
        self.confirmed: dict[str, Entry] = {}
        self.sent: dict[str, Entry] = {}
        self.errors: list[str] = []
        self.connections = 0
        self._url = url
        self._targets = itertools.cycle(targets)
        self._rate = rate
        self._window = window
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
        self._wake()
        self._thread.join(timeout)
        alive = self._thread.is_alive()
        self.abandon()
        if alive:
            raise AssertionError(
                f"{self.tenant_id}: {len(self.sent) - len(self.confirmed)} messages were not"
                f" confirmed within {timeout:g} s"
            )
        assert not self.errors, self.errors[:3]
        assert self.sent.keys() == self.confirmed.keys()

    def abandon(self) -> None:
        """End at once, whatever is unconfirmed; harmless after `finish`."""
        self._abandoned.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _due(self) -> int:
        """Give how many new messages are to be published by now."""
        due = math.ceil((time.monotonic() - self._began) * self._rate) - self._count
        return due if self._limit is None else min(due, self._limit - self._count)

    def _next(self) -> Message:
        """Make a message, and write down that it is sent."""
        self._count += 1
        draft = self._make(self.tenant_id, self._count)
        message = Message(
            draft, entry(draft, next(self._targets), sender=self._name, number=self._count)
        )
        self.sent[draft.key] = message.entry
        if self._record is not None:
            self._record.sent(self.tenant_id, draft.key, message.entry)
        return message

    def _note(self, confirmed: Iterable[Message]) -> None:
        """Write down what was confirmed."""
        those = {one.draft.key: one.entry for one in confirmed}
        if self._record is not None:
            self._record.confirmed(self.tenant_id, list(those))
        self.confirmed |= those

    @abstractmethod
    def _run(self) -> None:
        """Publish what is due, until it is abandoned, or finishing and all is confirmed."""

    def _wake(self) -> None:  # noqa: B027 - it looks by itself, mostly
        """Have the thread look whether it is to end."""
