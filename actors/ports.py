"""What the actors stand on, and what an observer hears of their work."""

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
from tenantry.turns.turns import Weights


class Followed(NamedTuple):
    """A message that stands in a trace: when it was published, if it tells, and the trace's id."""

    published_at_ms: int | None
    trace_id: str


class Observer:
    """Hears what the actors do, and ignores it where a subclass does not say otherwise.

    A call a batch, never a call a message. Called on the actors' threads: must neither block nor
    raise.
    """

    def batch_stored(
        self,
        tenant_id: str,
        batch: Sequence[Delivery],
        seconds: float,
        followed: Sequence[Followed] = (),
    ) -> None:
        """A batch has been committed just now; the store took `seconds` for it.

        A few of its messages may be `followed` in traces.
        """

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
        """An actor of such a kind hangs and is replaced; or a `loop` hangs, and is not."""

    def drifted(self, kind: str, outcome: str) -> None:
        """Something outside had changed behind the daemon's back.

        The outcome is `repaired`, `failed` (it will be tried again) or `reported` (it can't be
        repaired without loss).
        """

    def tenant_gone(self, tenant_id: str) -> None:
        """A tenant exists no more; its id may come back as another tenant's."""


class Ownership(Protocol):
    """Whose tenants are, on several nodes.

    Called on the actors' threads: must neither block nor raise.
    """

    def owns(self, tenant_id: str) -> bool:
        """Tell whether a tenant is this node's."""

    def expects(self, tenant_id: str) -> bool:
        """Tell whether a tenant without an actor is about to get one: it is this node's now."""

    def looks_after(self, tenant_id: str) -> bool:
        """Tell whether what is left of a deleted tenant is this node's to remove."""

    def released(self, tenant_id: str) -> None:
        """Nothing is done for a tenant any more that was to be released."""

    def gone(self, tenant_id: str) -> None:
        """A tenant exists no more."""

    def claim(self, tenant_id: str) -> bool:
        """Make a tenant this node's that is about to be made; False where it is another's.

        Not for actors: it waits for the database, and raises `UnavailableError`.
        """

    def elsewhere(self, tenant_id: str) -> str | None:
        """Name the other node whose a tenant is, if it is one's. As `claim`, not for actors."""


class AllMine:
    """The ownership of a daemon that is alone: all tenants are its own."""

    def owns(self, tenant_id: str) -> bool:  # noqa: ARG002
        """See `Ownership.owns`."""
        return True

    looks_after = owns

    def expects(self, tenant_id: str) -> bool:  # noqa: ARG002
        """See `Ownership.expects`: who has none is none."""
        return False

    def released(self, tenant_id: str) -> None:
        """See `Ownership.released`: nobody asks for it."""

    gone = released
    claim = owns

    def elsewhere(self, tenant_id: str) -> None:
        """See `Ownership.elsewhere`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPorts:
    """The same for every actor.

    `messages` is the store that workers use, with the handlers before it. `limits` gives the
    consumer's settings in force; `prefetch` is shared by a tenant's queues. `reconcile_every` is
    the seconds between two looks for drift; `store_patience`, how many a batch may take, where that
    is longer than an actor may be silent. `weights` are told what tenants weigh, and the
    `tracer` of what is done.
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
    tracer: Tracer = field(default_factory=Tracer)
