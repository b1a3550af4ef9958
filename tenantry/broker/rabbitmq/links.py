"""The daemon's ways to RabbitMQ, under one permit."""

from __future__ import annotations

from tenantry.broker.budget import Budget
from tenantry.broker.links import Links
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.permit import Permit
from tenantry.broker.rabbitmq.probes import RabbitProbes
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.broker.rabbitmq.tls import Tls
from tenantry.settings import Settings, SettingsError


def tls_of(settings: Settings) -> Tls:
    """Give the files that the settings name."""
    given = settings.rabbitmq
    return Tls(ca_file=given.ca_file, cert_file=given.cert_file, key_file=given.key_file)


def rabbitmq_links(settings: Settings, permit: Permit) -> Links:
    """Make the ways to the broker of the settings. Raises `SettingsError`, `BrokerError`."""
    url = settings.rabbitmq.url.get_secret_value()
    management = settings.management_url
    if management is None:
        raise SettingsError("rabbitmq.url names no host")
    tls = tls_of(settings)
    administration = RabbitAdministration(
        url=url,
        management_url=management.get_secret_value(),
        queue_type=settings.queue.type,
        installation=permit.installation,
        permit=permit,
        tls=tls,
    )
    publishing = RabbitPublishing(url, permit, tls)
    consuming = RabbitConsuming(
        url,
        permit,
        tls,
        budget=Budget(
            each=settings.consumer.prefetch_bytes, total=settings.consumer.prefetch_bytes_total
        ),
    )

    def prepare() -> None:
        administration.check()
        administration.shut_out_earlier_terms()

    return Links(
        administration=administration,
        queues=administration,
        consuming=consuming,
        publishing=publishing,
        dead_letters=RabbitDeadLetters(url, permit, tls),
        connected=lambda: consuming.connected,
        reconnects={
            "consuming": lambda: consuming.reconnects,
            "publishing": lambda: publishing.reconnects,
        },
        prepare=prepare,
        loops={"broker-publishing": publishing, "broker-consuming": consuming},
        close=administration.close,
        probes=RabbitProbes(administration),
    )
