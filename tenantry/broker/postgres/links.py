"""The daemon's ways to the embedded broker, which is in the database it stores messages in."""

from __future__ import annotations

from tenantry.broker.budget import Budget
from tenantry.broker.links import Links
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.consuming import PostgresConsuming
from tenantry.broker.postgres.dead_letters import PostgresDeadLetters
from tenantry.broker.postgres.publishing import PostgresPublishing
from tenantry.broker.postgres.rotation import QueueRotation
from tenantry.database.pool import Database


def embedded_links(database: Database, installation: str, budget: Budget | None = None) -> Links:
    """Make the ways to the broker in `database`, whose sessions may have a term.

    `budget` bounds the bytes of deliveries that are unsettled.
    """
    # The message store takes what it stores out of the queues: an ack has nothing to remove.
    consuming = PostgresConsuming(database, acks_remove=False, budget=budget)
    administration = PostgresAdministration(
        database, installation=installation, in_hand=consuming.in_hand
    )
    rotation = QueueRotation(database)
    return Links(
        administration=administration,
        queues=administration,
        consuming=consuming,
        publishing=PostgresPublishing(database),
        dead_letters=PostgresDeadLetters(database),
        connected=lambda: consuming.connected,
        reconnects={"consuming": lambda: consuming.reconnects},
        prepare=administration.check,
        loops={"broker-consuming": consuming, "broker-rotation": rotation},
        close=lambda: None,
        ring=rotation.ring,
    )
