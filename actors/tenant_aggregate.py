"""A tenant as the journal has it: its events, and the state that they fold to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from tenantry.actors.ports import ActorPorts
from tenantry.actors.runtime_state import TenantRuntimeState
from tenantry.domain import names
from tenantry.domain.commands import Command
from tenantry.domain.tenant import Lifecycle, TenantState, decide, fold
from tenantry.journal.port import JournalError, Metadata, VersionConflictError
from tenantry.journal.tenants import load_tenant, snapshot_of

log = structlog.get_logger("actors.tenant")

SNAPSHOT_EVERY: Final = 100
"""Events of a stream between two snapshots."""

MOST_ATTEMPTS: Final = 3
"""How often a command is decided at most, when other writers keep appending first."""


class TenantAggregate:
    """One tenant's events and state. Only its actor appends; the state is shown in `runtime`.

    `beat` is called before each append: it raises if the actor has been replaced, so that a fenced
    actor appends nothing more.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        ports: ActorPorts,
        runtime: TenantRuntimeState,
        beat: Callable[[], None],
    ) -> None:
        self._id = tenant_id
        self._journal = ports.journal
        self._clock = ports.clock
        self._observer = ports.observer
        self._runtime = runtime
        self._beat = beat
        self.loaded = False
        self.state: TenantState | None = None
        """None until it is loaded, and for a tenant that never existed."""

    @property
    def exists(self) -> bool:
        """Whether the tenant exists, by the loaded state."""
        return self.state is not None and self.state.exists

    def known(self) -> TenantState:
        """Return the state; raise where there is none."""
        if self.state is None:
            raise RuntimeError("the tenant has no state yet")
        return self.state

    def load(self, show_totals: Callable[[], None]) -> None:
        """Fold the tenant's events; show an existing tenant's totals before its state.

        Raises `JournalUnavailableError`, `JournalError`, and what `show_totals` raises.
        """
        state = load_tenant(self._journal, self._id)
        if state is not None and state.exists:
            # First the totals, then the state: a reader that sees the tenant sees right totals.
            show_totals()
        self.state = self._runtime.state = state
        self.loaded = True

    def adopt(self, state: TenantState) -> None:
        """Take over a state that was read from the journal under this daemon's term."""
        self.state = self._runtime.state = state
        self.loaded = True

    def execute(self, command: Command, metadata: Metadata) -> TenantState:
        """Decide a command, append its events, fold them; return the state after them.

        If another writer has appended first, the command is decided again on the new state, a few
        times. Raises `DomainError` where the command is refused, `JournalUnavailableError`,
        `JournalError`.
        """
        for attempt in range(MOST_ATTEMPTS):
            events = decide(self.state, command)
            if not events:
                break
            expected = 0 if self.state is None else self.state.version
            self._beat()
            began = self._clock.now()
            try:
                recorded = self._journal.append(
                    names.journal_stream(self._id), events, expected=expected, metadata=metadata
                )
            except VersionConflictError:
                if attempt == MOST_ATTEMPTS - 1:
                    raise
                self.state = load_tenant(self._journal, self._id)
                continue
            self._observer.journal_appended(len(recorded), self._clock.now() - began)
            self.state = fold(
                zip(events, (one.recorded_at for one in recorded), strict=True), self.state
            )
            self._keep_snapshot(expected)
            break
        self._show()
        return self.known()

    def _show(self) -> None:
        """Show the state; a newly active tenant has its grace to start consuming from now on."""
        before, state = self._runtime.state, self.state
        active = state is not None and state.lifecycle is Lifecycle.ACTIVE
        if active and (before is None or before.lifecycle is not Lifecycle.ACTIVE):
            self._runtime.waiting_since = self._clock.now()
        self._runtime.state = state

    def _keep_snapshot(self, before: int) -> None:
        state = self.state
        if state is None or not snapshot_due(before, state.version):
            return
        try:
            self._journal.save_snapshot(snapshot_of(state))
        except JournalError as error:
            # Harmless: a snapshot only saves time, and the next one will do.
            log.warning("tenant.snapshot_failed", error=str(error))


def snapshot_due(before: int, now: int) -> bool:
    """Tell whether an append that led from one version to another calls for a snapshot."""
    return now // SNAPSHOT_EVERY > before // SNAPSHOT_EVERY
