"""Apache Iggy (`BrokerAdapter`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from tenantry.broker.adapter import BrokerLinks, Publishers, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.iggy.administration import IggyAdministration
from tenantry.broker.iggy.client import Access, Sessions, library
from tenantry.broker.iggy.consuming import IggyConsuming
from tenantry.broker.iggy.dead_letters import IggyDeadLetters
from tenantry.broker.iggy.moving import IggySource
from tenantry.broker.iggy.probes import IggyProbes
from tenantry.broker.iggy.publishing import IggyPublishing

if TYPE_CHECKING:
    from tenantry.database.loop import LoopQueries
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


def links(settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
    """See `BrokerAdapter.links`. Raises `BrokerError` if the client library is missing."""
    library()
    access = _access(settings)
    consuming = IggyConsuming(access, database, fence, budget=Budget.of(settings))
    administration = IggyAdministration(
        Sessions(access, fence),
        database,
        installation=fence.installation,
        standing=consuming.standing,
        consumed=consuming.consumed,
    )
    sessions = Sessions(access, fence)
    dead_letters = IggyDeadLetters(database)
    publishing = IggyPublishing(sessions, dead_letters)

    def close() -> None:
        sessions.close()
        administration.close()

    return BrokerLinks(
        administration=administration,
        queues=administration,
        consuming=consuming,
        publishing=publishing,
        dead_letters=dead_letters,
        connected=lambda: consuming.connected,
        reconnects={
            "consuming": lambda: consuming.reconnects,
            "publishing": lambda: publishing.reconnects,
        },
        prepare=administration.check,
        loops={"broker-consuming": consuming},
        close=close,
        probes=IggyProbes(sessions, fence.installation),
    )


def describe(settings: Settings) -> Mapping[str, str]:
    """See `BrokerAdapter.describe`."""
    return {"iggy_address": _access(settings).where}


def publishing_access(settings: Settings) -> Mapping[str, str]:
    """See `BrokerAdapter.publishing_access`: the caller adds the URL."""
    return {"ca_file": settings.broker_ca_file}


def publishing(
    access: Mapping[str, str], database: Database, _queries: LoopQueries | None
) -> Publishers:
    """See `BrokerAdapter.publishing`."""
    library()
    sessions = Sessions(Access.of(access["url"], ca_file=access["ca_file"]))
    return Publishers(IggyPublishing(sessions, IggyDeadLetters(database)))


def source(
    settings: Settings, database: Database, fence: TermFence, *, alone: bool
) -> tuple[AbstractContextManager[IggySource], IggyConsuming]:
    """See `BrokerAdapter.source`."""
    library()
    access = _access(settings)
    consuming = IggyConsuming(access, database, fence, budget=Budget.of(settings), alone=alone)
    return _source(access, database, fence, consuming), consuming


@contextmanager
def _source(
    access: Access, database: Database, fence: TermFence, consuming: IggyConsuming
) -> Iterator[IggySource]:
    administration = IggyAdministration(
        Sessions(access, fence),
        database,
        installation=fence.installation,
        standing=consuming.standing,
        consumed=consuming.consumed,
    )
    try:
        administration.check()
        yield IggySource(database, administration, consuming)
    finally:
        administration.close()


def _access(settings: Settings) -> Access:
    return Access.of(settings.broker_url.get_secret_value(), ca_file=settings.broker_ca_file)
