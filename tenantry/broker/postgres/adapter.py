"""The embedded broker (`BrokerAdapter`), in the database that messages are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from tenantry.broker.adapter import BrokerLinks, Publishers, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.consuming import PostgresConsuming
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.moving import EmbeddedSource
from tenantry.broker.postgres.publishing import PostgresLoopPublishing, PostgresPublishing
from tenantry.broker.postgres.rotation import QueueRotation

if TYPE_CHECKING:
    from tenantry.database.loop import LoopQueries
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


def links(settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
    """See `BrokerAdapter.links`; the database's sessions carry the term."""
    # The message store removes stored messages from the queues: an ack has nothing to do.
    consuming = PostgresConsuming(database, acks_remove=False, budget=Budget.of(settings))
    administration = PostgresAdministration(
        database, installation=fence.installation, in_hand=consuming.in_hand
    )
    rotation = QueueRotation(database)
    return BrokerLinks(
        administration=administration,
        queues=administration,
        consuming=consuming,
        publishing=PostgresPublishing(database),
        dead_letters=PostgresDeadLetters(database),
        connected=lambda: consuming.connected,
        reconnects={"consuming": lambda: consuming.reconnects},
        prepare=administration.check,
        loops={"broker-consuming": consuming, "broker-rotation": rotation},
        ring=rotation.ring,
    )


def describe(_settings: Settings) -> None:
    """See `BrokerAdapter.describe`."""


def publishing_access(_settings: Settings) -> Mapping[str, str]:
    """See `BrokerAdapter.publishing_access`: the publishing process knows the database."""
    return {}


def publishing(
    _access: Mapping[str, str], database: Database, queries: LoopQueries | None
) -> Publishers:
    """See `BrokerAdapter.publishing`."""
    on_loop = None if queries is None else PostgresLoopPublishing(queries)
    return Publishers(PostgresPublishing(database), on_loop)


def source(
    _settings: Settings,
    database: Database,
    _fence: TermFence,
    *,
    alone: bool,  # noqa: ARG001 - the lease on the queues tells
) -> tuple[AbstractContextManager[EmbeddedSource], None]:
    """See `BrokerAdapter.source`."""
    return EmbeddedSource.opened(database), None
