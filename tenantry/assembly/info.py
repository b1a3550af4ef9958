"""What `GET /info` shows: what the daemon runs on, and where; no user, no password."""

from __future__ import annotations

from tenantry import __version__
from tenantry.assembly.entrance import Entrance
from tenantry.broker import select
from tenantry.settings import Settings


def describe(settings: Settings, entrance: Entrance, *, database: str) -> dict[str, object]:
    """Describe a daemon that listens already; `database` says where that is."""
    return {
        "version": __version__,
        "rabbitmq": select.describe(settings),
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
