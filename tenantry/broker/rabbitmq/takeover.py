"""What a daemon does on the broker when it has taken the term from another."""

from __future__ import annotations

import structlog

from tenantry.broker.rabbitmq.management import ManagementClient
from tenantry.broker.rabbitmq.permit import Permit, term_of

log = structlog.get_logger(__name__)


def shut_out(management: ManagementClient, permit: Permit) -> int:
    """Close the connections that were made under earlier terms; give how many there were.

    A frozen daemon keeps its connections, and with them its deliveries. RabbitMQ answers once it
    has ended a connection's channels: their deliveries are in the queues again, and what that
    daemon has yet to send is not listened to. It may list the connection for half a minute longer,
    waiting for a client that says goodbye. Raises `BrokerError`.
    """
    if permit.number is None:
        return 0
    earlier = {
        name
        for name, called in management.connections()
        if (term := term_of(called)) is not None and term < permit.number
    }
    for name in earlier:
        management.close_connection(name, "another daemon has taken the term")
    if earlier:
        log.info("broker.shut_out", connections=len(earlier))
    return len(earlier)
