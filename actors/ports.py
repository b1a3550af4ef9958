"""What a tenant and its children stand on."""

from __future__ import annotations

from dataclasses import dataclass, field

from tenantry.actors.buffer import ConsumerLimits
from tenantry.actors.clock import Clock
from tenantry.actors.observer import NoObserver, Observer
from tenantry.actors.provisioning import Provisioner
from tenantry.broker.port import Consuming
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPorts:
    """The same for every tenant. `store_patience`: how long a batch may take, if that is longer."""

    journal: EventStore
    messages: MessageStore
    dead_letters: DeadLetterIndex
    broker: Consuming
    provisioner: Provisioner
    clock: Clock
    limits: ConsumerLimits
    observer: Observer = field(default_factory=NoObserver)
    store_patience: float | None = None
