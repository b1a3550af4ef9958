"""What `GET /info` shows: what the daemon runs on, and where; no user, no password."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from tenantry import __version__
from tenantry.assembly.entrance import Entrance
from tenantry.settings import Settings
from tenantry.urls import address, without_user


def describe(settings: Settings, entrance: Entrance, *, database: str) -> dict[str, object]:
    """Describe a daemon that listens already; `database` says where that is."""
    return {
        "version": __version__,
        "rabbitmq": _broker(settings),
        "database": {
            "embedded": not settings.database.url.get_secret_value(),
            "where": database,
        },
        "server": {
            "host": settings.server.host,
            "port": entrance.port,
            "tls": settings.server.tls is not None,
        },
        "metrics": {"port": entrance.metrics_port},
        "control_socket": str(settings.control_socket),
        "state_dir": str(settings.state_dir),
    }


def _broker(settings: Settings) -> dict[str, str] | None:
    """Say where clients find RabbitMQ; None: the broker is embedded."""
    management = settings.management_url
    if management is None:
        return None
    parts = urlsplit(settings.rabbitmq.url.get_secret_value())
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return {
        "amqp_address": address(parts.hostname or "", port),
        "vhost": unquote(parts.path[1:]) or "/",
        "management_url": without_user(management.get_secret_value()),
    }
