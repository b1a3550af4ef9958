"""A daemon's term on RabbitMQ: connections carry its number, and are closed after its end."""

from __future__ import annotations

import re
from typing import Final

import structlog

from tenantry.broker.adapter import TermFence
from tenantry.broker.port import BrokerUnavailableError
from tenantry.broker.rabbitmq.management import ManagementClient

log = structlog.get_logger(__name__)

PRODUCT: Final = "Tenantry"
# A term is a bigint: longer numbers are not ours, and Python refuses to parse thousands of digits.
_NAME: Final = re.compile(
    r"tenantry [^,]*(?:, of (?P<of>[a-z0-9-]+))?(?:, node (?P<node>[A-Za-z0-9._-]+))?"
    r", term (?P<term>[0-9]{1,19})",
    re.ASCII,
)

SHUT_OUT_SECONDS: Final = 2.0
"""Seconds the broker may take to close a connection before the takeover goes on without it."""


def client_properties(fence: TermFence, name: str) -> dict[str, str]:
    """Return the client properties of a connection: its name tells other daemons its term."""
    whose = f", of {fence.installation}" if fence.installation else ""
    node = f", node {fence.node}" if fence.node else ""
    term = "" if fence.number is None else f", term {fence.number}"
    return {"connection_name": f"tenantry {name}{whose}{node}{term}", "product": PRODUCT}


def outlived(fence: TermFence, connection_name: str) -> bool:
    """Return whether a connection's name is of an earlier term of the fence's node.

    Any client may use such a name: ask only for connections that the broker knows to be our user's.
    """
    match = _NAME.fullmatch(connection_name)
    if match is None or fence.number is None:
        return False
    if ((match["of"] or ""), (match["node"] or "")) != (fence.installation, fence.node):
        return False
    return int(match["term"]) < fence.number


def shut_out(management: ManagementClient, fence: TermFence, *, user: str) -> int:
    """Close the connections made under earlier terms; return how many there were.

    Only connections that the broker has authenticated as `user` are ours. A connection's name is
    chosen by its client, which may be a tenant, and proves nothing by itself.

    A frozen daemon keeps its connections, and with them its deliveries. RabbitMQ answers once it
    has ended a connection's channels: their deliveries are in the queues again, and it ignores what
    that daemon has yet to send. It may list the connection for half a minute longer, waiting for
    the client's goodbye. A connection that it can't close in time is named in the log: its
    deliveries come later. Raises `BrokerError` if the connections can't be listed.
    """
    if fence.number is None:
        return 0
    earlier = {
        name: called for name, called in management.connections_of(user) if outlived(fence, called)
    }
    for name, called in earlier.items():
        try:
            management.close_connection(
                name, "another daemon has taken the term", seconds=SHUT_OUT_SECONDS
            )
        except BrokerUnavailableError as error:
            log.warning("broker.not_shut_out", connection=called, error=str(error))
    if earlier:
        log.info("broker.shut_out", connections=len(earlier))
    return len(earlier)
