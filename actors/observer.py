"""What a bystander hears of the actors' work: a call a batch, never a call a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tenantry.broker.port import Delivery


class Observer(Protocol):
    """Hears what the actors do. Called on their threads: must neither block nor raise."""

    def batch_stored(self, tenant_id: str, batch: Sequence[Delivery], seconds: float) -> None:
        """A batch has been committed just now; the store took `seconds` for it."""

    def attempts_failed(self, tenant_id: str, reasons: Sequence[str]) -> None:
        """Handlers have failed on messages, for these reasons, one a message."""

    def ids_reused(self, tenant_id: str, count: int) -> None:
        """So many messages came under ids under which something else is stored."""

    def batch_delayed(self, tenant_id: str) -> None:
        """The database could not be reached; the batch is kept, and tried again."""

    def journal_appended(self, events: int, seconds: float) -> None:
        """The journal has taken some events, in `seconds`."""

    def actor_failed(self, kind: str) -> None:
        """A `tenant`, `consumer`, `worker` or the `reconciler` has failed; its parent acts."""

    def actor_stuck(self, kind: str) -> None:
        """One of these hangs and is replaced; or a `loop` hangs, and is not."""

    def drifted(self, kind: str, outcome: str) -> None:
        """Something outside had changed behind the daemon's back.

        The outcome is `repaired`, `failed` (it will be tried again) or `reported` (it can't be
        repaired without loss).
        """

    def tenant_gone(self, tenant_id: str) -> None:
        """A tenant exists no more; its id may come back as another tenant's."""


class NoObserver:
    """Looks away."""

    def batch_stored(self, tenant_id: str, batch: Sequence[Delivery], seconds: float) -> None:
        """Do nothing."""

    def attempts_failed(self, tenant_id: str, reasons: Sequence[str]) -> None:
        """Do nothing."""

    def ids_reused(self, tenant_id: str, count: int) -> None:
        """Do nothing."""

    def batch_delayed(self, tenant_id: str) -> None:
        """Do nothing."""

    def journal_appended(self, events: int, seconds: float) -> None:
        """Do nothing."""

    def actor_failed(self, kind: str) -> None:
        """Do nothing."""

    def actor_stuck(self, kind: str) -> None:
        """Do nothing."""

    def drifted(self, kind: str, outcome: str) -> None:
        """Do nothing."""

    def tenant_gone(self, tenant_id: str) -> None:
        """Do nothing."""
