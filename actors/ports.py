"""The ports that the actors use, and the observer of their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tenantry.actors.clock import Clock
from tenantry.actors.provisioner import Provisioner
from tenantry.broker.port import Consuming, Delivery
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore
from tenantry.projections.port import TenantDirectory
from tenantry.settings.model import Consumer as ConsumerSettings
from tenantry.tracing import Tracer
from tenantry.turns.neighbours import Neighbours
from tenantry.turns.turns import Weights


class Followed(NamedTuple):
    """A traced message: when it was published, if known, and the trace's id."""

    published_at_ms: int | None
    trace_id: str


class Observer:
    """Is told what the actors do; this base class ignores it.

    There is one call a batch, never one a message. Called on the actors' threads: must neither
    block nor raise.
    """

    def batch_stored(
        self,
        tenant_id: str,
        batch: Sequence[Delivery],
        seconds: float,
        followed: Sequence[Followed] = (),
    ) -> None:
        """A batch has just been committed; the store took `seconds` for it.

        A few of its messages may be `followed` in traces.
        """

    def attempts_failed(self, tenant_id: str, reasons: Sequence[str]) -> None:
        """Handlers have failed on messages, for these reasons, one a message."""

    def ids_reused(self, tenant_id: str, count: int) -> None:
        """So many messages had the id of another stored message."""

    def batch_delayed(self, tenant_id: str) -> None:
        """The database could not be reached; the batch is kept, and tried again."""

    def journal_appended(self, events: int, seconds: float) -> None:
        """The journal has taken some events, in `seconds`."""

    def actor_failed(self, kind: str) -> None:
        """A `tenant`, `consumer`, `worker` or the `reconciler` has failed; its parent acts."""

    def actor_stuck(self, kind: str) -> None:
        """An actor of this kind hangs and is replaced; or a `loop` hangs, and is not replaced."""

    def drifted(self, kind: str, outcome: str) -> None:
        """Something outside had changed behind the daemon's back.

        The outcome is `repaired`, `failed` (it will be tried again) or `reported` (it can't be
        repaired without loss).
        """

    def tenant_gone(self, tenant_id: str) -> None:
        """A tenant exists no more; its id may come back as another tenant's."""


class Ownership(Protocol):
    """Which node owns which tenant.

    Called on the actors' threads: must neither block nor raise.
    """

    def owns(self, tenant_id: str) -> bool:
        """Tell whether this node owns a tenant."""

    def expects(self, tenant_id: str) -> bool:
        """Tell whether a tenant, just acquired by this node, is about to get its actor."""

    def looks_after(self, tenant_id: str) -> bool:
        """Tell whether this node is to remove a deleted tenant's leftovers."""

    def released(self, tenant_id: str) -> None:
        """All work for a tenant that was to be released has ended."""

    def gone(self, tenant_id: str) -> None:
        """A tenant exists no more."""

    def claim(self, tenant_id: str) -> bool:
        """Claim a tenant about to be created for this node; False where another node owns it.

        Not for actors: it waits for the database, and raises `UnavailableError`.
        """

    def elsewhere(self, tenant_id: str) -> str | None:
        """Name the other node that owns a tenant, if any. As `claim`, not for actors."""


class AllMine:
    """The ownership of a daemon that is alone: all tenants are its own."""

    def owns(self, tenant_id: str) -> bool:  # noqa: ARG002
        """See `Ownership.owns`."""
        return True

    looks_after = owns

    def expects(self, tenant_id: str) -> bool:  # noqa: ARG002
        """See `Ownership.expects`: a tenant without an actor does not exist."""
        return False

    def released(self, tenant_id: str) -> None:
        """See `Ownership.released`: there is no other node to tell."""

    gone = released
    claim = owns

    def elsewhere(self, tenant_id: str) -> None:
        """See `Ownership.elsewhere`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPorts:
    """The ports and settings that all actors share.

    `messages` is the store that workers use, with the handlers before it. `limits` returns the
    consumer's settings in force; their `prefetch` is shared by a tenant's queues. `reconcile_every`
    is in seconds between two looks for drift; `store_patience`, the seconds that a batch may take,
    where that is longer than an actor may be silent. `weights` holds the tenants' weights, and
    `neighbours` knows who is quiet; the `tracer` traces the work.
    """

    journal: EventStore
    directory: TenantDirectory
    messages: MessageStore
    dead_letters: DeadLetterIndex
    dead_letter_events: DeadLetterEvents
    consuming: Consuming
    provisioner: Provisioner
    clock: Clock
    limits: Callable[[], ConsumerSettings]
    observer: Observer
    reconcile_every: float
    store_patience: float | None = None
    ownership: Ownership = field(default_factory=AllMine)
    weights: Weights = field(default_factory=Weights)
    neighbours: Neighbours = field(default_factory=Neighbours)
    tracer: Tracer = field(default_factory=Tracer)
