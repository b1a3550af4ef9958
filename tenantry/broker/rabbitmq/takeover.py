"""What a daemon does on the broker when it has taken the term from another."""

from __future__ import annotations

from typing import Final

import structlog

from tenantry.broker.port import BrokerUnavailableError
from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.permit import Permit

log = structlog.get_logger(__name__)


SECONDS: Final = 2.0
"""How long the broker may take to close a connection before the takeover goes on without it."""


def shut_out(management: ManagementClient, permit: Permit, *, user: str) -> int:
    """Close the connections that were made under earlier terms; give how many there were.

    Ours are those of `user`, by which the broker has let them in. What a connection calls itself
    is said by its client, and so by tenants as well: it counts for nothing before that.
    A frozen daemon keeps its connections, and with them its deliveries. RabbitMQ answers once it
    has ended a connection's channels: their deliveries are in the queues again, and what that
    daemon has yet to send is not listened to. It may list the connection for half a minute longer,
    waiting for a client that says goodbye. One that it can't close in time is named in the log:
    its deliveries come later. Raises `BrokerError` where the connections can't be listed.
    """
    if permit.number is None:
        return 0
    earlier = {
        name: called for name, called in management.connections_of(user) if permit.outlived(called)
    }
    for name, called in earlier.items():
        try:
            management.close_connection(name, "another daemon has taken the term", seconds=SECONDS)
        except BrokerUnavailableError as error:
            log.warning("broker.not_shut_out", connection=called, error=str(error))
    if earlier:
        log.info("broker.shut_out", connections=len(earlier))
    return len(earlier)
