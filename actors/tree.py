"""The whole tree of actors, from the ports it stands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tenantry.actors.board import Board
from tenantry.actors.buffer import ConsumerLimits
from tenantry.actors.clock import Clock, tell
from tenantry.actors.messages import Begin, Ref
from tenantry.actors.observer import Observer
from tenantry.actors.ports import TenantPorts
from tenantry.actors.provisioning import Provisioner
from tenantry.actors.reconciler import ReconcilerPorts
from tenantry.actors.supervisor import Supervisor, SupervisorPorts
from tenantry.broker.port import Administration, Consuming, PasswordHashes
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.journal.port import EventStore
from tenantry.messages.port import MessageStore
from tenantry.messages.sql_access import SqlAccess
from tenantry.process.reload import LiveSettings
from tenantry.projections.port import TenantDirectory
from tenantry.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePorts:
    """What the actors stand on, all together."""

    journal: EventStore
    directory: TenantDirectory
    messages: MessageStore
    handling: MessageStore
    """The store that workers use, with the handlers before it."""
    dead_letters: DeadLetterIndex
    consuming: Consuming
    administration: Administration
    passwords: PasswordHashes
    sql_access: SqlAccess
    clock: Clock
    observer: Observer


def plant(
    ports: TreePorts,
    live: LiveSettings,
    board: Board,
    *,
    store_patience: float | None,
    on_crash: Callable[[str], None],
) -> Ref:
    """Make the supervisor, which is on the board then; it does nothing before `begin`.

    `store_patience` is how long a batch may take, where that is longer than usual.
    """
    limits = _limits(live.now)
    live.follow(partial(_adjust, limits))
    provisioner = Provisioner(
        administration=ports.administration,
        messages=ports.messages,
        passwords=ports.passwords,
        sql_access=ports.sql_access,
    )
    supervisor: Ref = Supervisor.start(
        ports=SupervisorPorts(
            directory=ports.directory,
            tenant=TenantPorts(
                journal=ports.journal,
                messages=ports.handling,
                dead_letters=ports.dead_letters,
                broker=ports.consuming,
                provisioner=provisioner,
                clock=ports.clock,
                limits=limits,
                observer=ports.observer,
                store_patience=store_patience,
            ),
            reconciler=ReconcilerPorts(
                directory=ports.directory,
                provisioner=provisioner,
                clock=ports.clock,
                observer=ports.observer,
                every=live.now.reconcile.every_seconds,
            ),
        ),
        board=board,
        on_crash=on_crash,
    )
    board.supervisor = supervisor
    return supervisor


def _limits(settings: Settings) -> ConsumerLimits:
    consumer = settings.consumer
    return ConsumerLimits(
        prefetch=consumer.prefetch,
        batch_size=consumer.batch_size,
        linger=consumer.linger_ms / 1000,
    )


def _adjust(limits: ConsumerLimits, settings: Settings) -> None:
    limits.batch_size = settings.consumer.batch_size
    limits.linger = settings.consumer.linger_ms / 1000


def begin(supervisor: Ref) -> None:
    """Let the tree take up the tenants there are."""
    tell(supervisor, Begin())
