"""RabbitMQ (`BrokerAdapter`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit

from tenantry.broker.adapter import BrokerLinks, Publishers, TermFence
from tenantry.broker.budget import Budget
from tenantry.broker.port import BrokerError
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.late_connections import LOOK_EVERY
from tenantry.broker.rabbitmq.probes import RabbitProbes
from tenantry.broker.rabbitmq.publishing import RabbitLoopPublishing, RabbitPublishing
from tenantry.broker.rabbitmq.tls import Tls
from tenantry.loops import PeriodicService
from tenantry.urls import address, alternatives, without_user

if TYPE_CHECKING:
    from tenantry.database.loop import LoopQueries
    from tenantry.database.pool import Database
    from tenantry.settings import Settings


def links(settings: Settings, _database: Database, fence: TermFence) -> BrokerLinks:
    """See `BrokerAdapter.links`."""
    url, tls = settings.broker_url.get_secret_value(), Tls.of(settings)
    administration = RabbitAdministration(
        url=url,
        management_url=_management_url(settings),
        queue_type=settings.queue.type,
        installation=fence.installation,
        fence=fence,
        tls=tls,
    )
    publishing = RabbitPublishing(url, fence, tls)
    consuming = RabbitConsuming(url, fence, tls, budget=Budget.of(settings))

    def prepare() -> None:
        administration.check()
        administration.shut_out_earlier_terms()

    return BrokerLinks(
        administration=administration,
        queues=administration,
        consuming=consuming,
        publishing=publishing,
        dead_letters=RabbitDeadLetters(url, fence, tls),
        connected=lambda: consuming.connected,
        reconnects={
            "consuming": lambda: consuming.reconnects,
            "publishing": lambda: publishing.reconnects,
        },
        prepare=prepare,
        loops={
            "broker-publishing": publishing,
            "broker-consuming": consuming,
            "broker-late": PeriodicService(administration.late.look, every=LOOK_EVERY),
        },
        close=administration.close,
        shut_out=administration.shut_out_node,
        probes=RabbitProbes(administration),
    )


def describe(settings: Settings) -> Mapping[str, str]:
    """See `BrokerAdapter.describe`."""
    parts = urlsplit(alternatives(settings.broker_url.get_secret_value())[0])
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return {
        "amqp_address": address(parts.hostname or "", port),
        "vhost": unquote(parts.path[1:]) or "/",
        "management_url": without_user(alternatives(_management_url(settings))[0]),
    }


def publishing_access(settings: Settings) -> Mapping[str, str]:
    """See `BrokerAdapter.publishing_access`: the caller adds the URL."""
    return asdict(Tls.of(settings))


def publishing(
    access: Mapping[str, str], _database: Database, _queries: LoopQueries | None
) -> Publishers:
    """See `BrokerAdapter.publishing`."""
    files = {name: value for name, value in access.items() if name != "url"}
    broker = RabbitPublishing(access["url"], tls=Tls(**files))
    return Publishers(broker, RabbitLoopPublishing(broker), broker)


def source(
    _settings: Settings,
    _database: Database,
    _fence: TermFence,
    *,
    alone: bool,  # noqa: ARG001
) -> NoReturn:
    """See `BrokerAdapter.source`."""
    raise BrokerError(
        "messages in RabbitMQ are not moved: let the daemon store them, and then change its broker"
    )


def _management_url(settings: Settings) -> str:
    management = settings.management_url
    if management is None:
        raise BrokerError("rabbitmq.url names no host")
    return management.get_secret_value()
