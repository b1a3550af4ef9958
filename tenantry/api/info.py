"""What `GET /info` shows: what the daemon runs on, and where; no user, no password."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from tenantry import __version__
from tenantry.api.entrance import Entrance
from tenantry.settings import Settings


def describe(settings: Settings, entrance: Entrance, *, database: str) -> dict[str, object]:
    """Describe a daemon that listens already; `database` says where that is."""
    return {
        "version": __version__,
        "rabbitmq": _broker(settings.rabbitmq.url.get_secret_value()),
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


def _broker(url: str) -> dict[str, str] | None:
    """Say where clients find RabbitMQ; None: the broker is embedded."""
    if not url:
        return None
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return {
        "amqp_address": f"{parts.hostname}:{port}",
        "vhost": unquote(parts.path[1:]) or "/",
    }
