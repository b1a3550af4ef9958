"""A tenant's own client that has a batch confirmed as a whole, by whatever kind of broker."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from tests.ledger.client import EVERY
from tests.ledger.sender import Message, Sender

BATCH = 50
RETRY_AFTER = 0.05


class BatchClient(Sender):
    """Publishes batches, one after the other."""

    away: ClassVar[tuple[type[Exception], ...]]
    """Errors after which the client connects again."""

    wrong: ClassVar[tuple[type[Exception], ...]]
    """Errors that end the client, unless it is patient."""

    def _run(self) -> None:
        batch: list[Message] = []
        while not self._abandoned.is_set():
            try:
                with self._connect() as connection:
                    self.connections += 1
                    while not self._abandoned.is_set():
                        batch = batch or self._batch()
                        if batch:
                            self._publish(connection, batch)
                            self._note(batch)
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

    def _batch(self) -> list[Message]:
        if self._finishing.is_set():
            return []
        return [self._next() for _ in range(min(self._due(), self._window, BATCH))]

    @abstractmethod
    def _connect(self) -> AbstractContextManager[Any]:
        """Connect with the tenant's own credentials."""

    @abstractmethod
    def _publish(self, connection: Any, batch: Sequence[Message]) -> None:
        """Publish a batch, and return once all of it is confirmed."""
