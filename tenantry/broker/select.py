"""Selects the broker's adapter: the only place where the kinds of brokers are registered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from tenantry.broker.adapter import BrokerAdapter, BrokerLinks, Publishers, TermFence
from tenantry.broker.iggy import adapter as iggy
from tenantry.broker.moving import Source
from tenantry.broker.postgres import adapter as embedded
from tenantry.broker.postgres.moving import warn_of_what_is_left
from tenantry.broker.rabbitmq import adapter as rabbitmq
from tenantry.loops import Loop
from tenantry.urls import AMQP, IGGY, split

if TYPE_CHECKING:
    from tenantry.database.loop import LoopQueries
    from tenantry.database.pool import Database
    from tenantry.settings import Settings

ADAPTERS: Final[Mapping[str, BrokerAdapter]] = {
    "": embedded,
    **dict.fromkeys(AMQP, rabbitmq),
    **dict.fromkeys(IGGY, iggy),
}
"""Adapters by the scheme of the broker's URL; without a URL it is the embedded broker."""

SYSTEMS: Final[Mapping[str, str]] = {
    "": "postgresql",
    **dict.fromkeys(AMQP, "rabbitmq"),
    **dict.fromkeys(IGGY, "iggy"),
}
"""The brokers' names in traces, by the same schemes."""


def connect(settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
    """Make a daemon's links to its broker. Raises `BrokerError`, `DatabaseError`.

    Warns in the log if the embedded broker is not in use and still holds messages.
    """
    adapter = _adapter(_url(settings))
    links = adapter.links(settings, database, fence)
    if adapter is not embedded:
        warn_of_what_is_left(database)
    return links


def describe(settings: Settings) -> Mapping[str, str] | None:
    """Return the broker's address for clients, without a user; None if it is the database."""
    return _adapter(_url(settings)).describe(settings)


def system(settings: Settings) -> str:
    """Return the name of the broker's kind in traces."""
    return SYSTEMS[split(_url(settings)).scheme]


def publishing_access(settings: Settings) -> Mapping[str, str]:
    """Return what another process needs in order to publish: texts, passwords among them."""
    url = _url(settings)
    return {"url": url, **_adapter(url).publishing_access(settings)}


def open_publishing(
    access: Mapping[str, str], database: Database, queries: LoopQueries | None = None
) -> Publishers:
    """Make publishers from the result of `publishing_access`.

    The caller runs their loop, if there is one, on a thread of its own. Raises `BrokerError`.
    """
    return _adapter(access["url"]).publishing(access, database, queries)


def source(
    settings: Settings, database: Database, fence: TermFence, *, alone: bool
) -> tuple[AbstractContextManager[Source], Loop | None]:
    """Make a source to move the broker's messages from; it is `alone` if no daemon runs.

    The caller runs the loop, if there is one, on a thread of its own. Raises `BrokerError`.
    """
    return _adapter(_url(settings)).source(settings, database, fence, alone=alone)


def _url(settings: Settings) -> str:
    return settings.broker_url.get_secret_value()


def _adapter(url: str) -> BrokerAdapter:
    return ADAPTERS[split(url).scheme]
