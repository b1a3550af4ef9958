"""Which broker it is: here, and only here, the kinds are registered that there are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from tenantry.broker.adapter import BrokerAdapter, BrokerLinks, TermFence
from tenantry.broker.iggy import adapter as iggy
from tenantry.broker.moving import Source
from tenantry.broker.port import Publishing
from tenantry.broker.postgres import adapter as embedded
from tenantry.broker.postgres.moving import warn_of_what_is_left
from tenantry.broker.rabbitmq import adapter as rabbitmq
from tenantry.loops import Loop
from tenantry.urls import AMQP, IGGY, split

if TYPE_CHECKING:
    from tenantry.database.pool import Database
    from tenantry.settings import Settings

ADAPTERS: Final[Mapping[str, BrokerAdapter]] = {
    "": embedded,
    **dict.fromkeys(AMQP, rabbitmq),
    **dict.fromkeys(IGGY, iggy),
}
"""By the scheme of the broker's URL; without a URL it is the embedded one."""

SYSTEMS: Final[Mapping[str, str]] = {
    "": "postgresql",
    **dict.fromkeys(AMQP, "rabbitmq"),
    **dict.fromkeys(IGGY, "iggy"),
}
"""What traces call them, by the same schemes."""


def connect(settings: Settings, database: Database, fence: TermFence) -> BrokerLinks:
    """Make a daemon's ways to its broker. Raises `BrokerError`, `DatabaseError`.

    The log says so if the embedded broker, which is not it, still holds messages.
    """
    adapter = _adapter(_url(settings))
    links = adapter.links(settings, database, fence)
    if adapter is not embedded:
        warn_of_what_is_left(database)
    return links


def describe(settings: Settings) -> Mapping[str, str] | None:
    """Say where clients find the broker, without a user; None: in the database itself."""
    return _adapter(_url(settings)).describe(settings)


def system(settings: Settings) -> str:
    """Give what traces call the kind of broker."""
    return SYSTEMS[split(_url(settings)).scheme]


def publishing_access(settings: Settings) -> Mapping[str, str]:
    """Give what another process needs in order to publish: texts, passwords among them."""
    url = _url(settings)
    return {"url": url, **_adapter(url).publishing_access(settings)}


def open_publishing(
    access: Mapping[str, str], database: Database
) -> tuple[Publishing, Loop | None]:
    """Make a way to publish of what `publishing_access` gave.

    The loop, if there is one, is the caller's to run, on a thread of its own. Raises `BrokerError`.
    """
    return _adapter(access["url"]).publishing(access, database)


def source(
    settings: Settings, database: Database, fence: TermFence, *, alone: bool
) -> tuple[AbstractContextManager[Source], Loop | None]:
    """Make a way to move what lies in the broker of the settings, `alone` if no daemon runs.

    The loop, if there is one, is the caller's to run, on a thread of its own. Raises `BrokerError`.
    """
    return _adapter(_url(settings)).source(settings, database, fence, alone=alone)


def _url(settings: Settings) -> str:
    return settings.broker_url.get_secret_value()


def _adapter(url: str) -> BrokerAdapter:
    return ADAPTERS[split(url).scheme]
