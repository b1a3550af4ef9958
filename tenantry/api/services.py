"""What the routes stand on: the ports, and the small things made once for all requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tenantry.api.cursors import Cursors
from tenantry.api.idempotency import IdempotencyKeys
from tenantry.api.partitions import Router
from tenantry.api.streams import Streams
from tenantry.api.tail import JournalTail
from tenantry.api.vitals import Vitals
from tenantry.audit.auditor import Auditor
from tenantry.broker.port import Publishing
from tenantry.control.port import Control
from tenantry.dead_letters.port import DeadLetterIndex
from tenantry.dead_letters.replay import Reprocessing
from tenantry.http.auth import principal_of
from tenantry.http.middleware import correlation_id_of
from tenantry.http.pool import Pool, Turns
from tenantry.http.tokens import Principal
from tenantry.isolation.port import Prover
from tenantry.journal.port import EventStore, Metadata
from tenantry.messages.port import MessageStore, PageReader
from tenantry.projections.port import TenantDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Threads for blocking calls, a kind each. `urgent` is for draining and stopping."""

    commands: Pool = field(default_factory=lambda: Pool(16))
    reads: Pool = field(default_factory=lambda: Pool(16))
    publishes: Pool = field(default_factory=lambda: Pool(16))
    dead_letters: Pool = field(default_factory=lambda: Pool(4))
    audits: Pool = field(default_factory=lambda: Pool(2))
    proofs: Pool = field(default_factory=lambda: Pool(1))
    urgent: Pool = field(default_factory=lambda: Pool(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a route may use. Timeouts are in seconds."""

    control: Control
    directory: TenantDirectory
    journal: EventStore
    messages: MessageStore
    page_reader: PageReader
    publishing: Publishing
    idempotency: IdempotencyKeys
    dead_letters: DeadLetterIndex
    reprocessing: Reprocessing
    info: Mapping[str, object]
    default_workers: Callable[[], int]
    command_timeout: float
    publish_timeout: float
    cursors: Cursors
    router: Router
    tail: JournalTail
    streams: Streams
    vitals: Vitals
    auditor: Auditor
    prover: Prover
    pools: Pools = field(default_factory=Pools)
    turns: Turns = field(default_factory=Turns)

    @property
    def threads(self) -> Pool:
        """Threads for reading."""
        return self.pools.reads

    @property
    def publish_threads(self) -> Pool:
        """Threads that wait for the broker."""
        return self.pools.publishes


async def _metadata(request: Request) -> Metadata:
    return Metadata(
        actor=principal_of(request.scope).name,
        correlation_id=correlation_id_of(request.scope),
    )


async def _principal(request: Request) -> Principal:
    return principal_of(request.scope)


Who = Annotated[Principal, Depends(_principal)]
"""Who calls, for what they may see."""

Caller = Annotated[Metadata, Depends(_metadata)]
"""Who calls, for the journal."""
