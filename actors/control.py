"""The actors behind the `Control` port: commands become messages, answers become results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

from tenantry import __version__
from tenantry.actors.messages import DrainAll, Execute, Ping, Ref
from tenantry.actors.ports import AllMine, Ownership
from tenantry.actors.runtime_state import RuntimeState
from tenantry.actors.supervision import tell
from tenantry.actors.watch import Watch
from tenantry.control.port import (
    CommandTimeoutError,
    ControlUnavailableError,
    ElsewhereError,
    Outcome,
    Readiness,
    SystemStatus,
    TenantRuntime,
    TermStatus,
)
from tenantry.domain import names
from tenantry.domain.commands import CreateTenant, OperatorCommand
from tenantry.journal.port import Metadata
from tenantry.nodes.port import Glance
from tenantry.tracing import Tracer
from tenantry.unavailable import UnavailableError

LAST_STEP_SECONDS: Final = 30.0
"""Extra seconds to wait for a command whose last step, an append, has begun."""


@dataclass(slots=True)
class ActorControl:
    """The running system behind the `Control` port."""

    _supervisor: Ref
    _runtime: RuntimeState
    _watch: Watch
    _: KW_ONLY
    drain_seconds: float
    on_stop: Callable[[], None]
    on_drain: Callable[[], bool] = lambda: False
    term: TermStatus | None = None
    ownership: Ownership = field(default_factory=AllMine)
    node: str | None = None
    nodes: Callable[[], Sequence[Glance]] = tuple
    tracer: Tracer = field(default_factory=Tracer)

    def execute(self, command: OperatorCommand, *, metadata: Metadata, timeout: float) -> Outcome:
        """Send a command down the tree and wait for its answer."""
        self._admit(command)
        reply: Future[Outcome] = Future()
        asked = self.tracer.current()
        message = Execute(command=command, metadata=metadata, reply=reply, asked=asked)
        if not tell(self._supervisor, message):
            raise ControlUnavailableError("the daemon is stopping")
        try:
            return reply.result(timeout)
        except FutureTimeoutError:
            if not reply.cancel():
                # The last step has begun, on the promise that the caller waits.
                with suppress(FutureTimeoutError):
                    return reply.result(LAST_STEP_SECONDS)
            raise CommandTimeoutError(
                f"no answer within {timeout:g} s; the command may still be carried out"
            ) from None

    def _admit(self, command: OperatorCommand) -> None:
        """Raise `ElsewhereError` where the command's tenant belongs to another node."""
        tenant_id = command.tenant_id
        try:
            if self.ownership.owns(tenant_id) or not names.is_tenant_id(tenant_id):
                return
            if isinstance(command, CreateTenant) and self.ownership.claim(tenant_id):
                return
            other = self.ownership.elsewhere(tenant_id)
        except UnavailableError as error:
            raise ControlUnavailableError(str(error)) from error
        if other is not None:
            raise ElsewhereError(f"tenant {tenant_id!r} is at work on node {other}")

    def status(self) -> SystemStatus:
        """Return the status of the whole system."""
        runtime = self._runtime
        reasons = runtime.not_ready()
        return SystemStatus(
            state=runtime.state,
            ready=not reasons,
            reasons=reasons,
            started_at=runtime.started_at,
            version=__version__,
            pid=os.getpid(),
            term=self.term,
            node=self.node,
            nodes=self.nodes(),
            tree=runtime.tree(),
            abandoned=tuple(one.name for one in runtime.departures.abandoned),
            tenants=runtime.snapshots(),
        )

    def readiness(self) -> Readiness:
        """Return whether the daemon is ready, and why not."""
        reasons = self._runtime.not_ready()
        return Readiness(state=self._runtime.state, reasons=reasons)

    def runtime(self, tenant_id: str) -> TenantRuntime | None:
        """Return what one tenant's actors are doing."""
        return self._runtime.snapshot(tenant_id)

    def runtimes(self) -> Mapping[str, TenantRuntime]:
        """Return what all tenants' actors are doing."""
        return self._runtime.snapshots()

    def liveness(self) -> tuple[str, ...]:
        """Return why the process can't go on; empty while it can."""
        return self._watch.liveness()

    def ping(self) -> Future[None]:
        """Ask the supervisor for a sign of life."""
        reply: Future[None] = Future()
        if not tell(self._supervisor, Ping(reply=reply)):
            raise ControlUnavailableError("the supervisor is dead")
        return reply

    def drain(self) -> None:
        """Begin to drain without stopping: by `on_drain`, or else only this process."""
        if not self.on_drain():
            self.drain_here()

    def drain_here(self) -> None:
        """Begin to drain this process without stopping."""
        drain = DrainAll(seconds=self.drain_seconds, stop=False, reply=Future())
        if not tell(self._supervisor, drain):
            raise ControlUnavailableError("the daemon is stopping")

    def stop(self) -> None:
        """Begin the shutdown."""
        self.on_stop()
