"""What a daemon's term means on RabbitMQ: connections carry its number, and end with it."""

from __future__ import annotations

import re
from typing import Any, Final

import pika
import structlog

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerUnavailableError
from tenantry.broker.rabbitmq.management import ManagementClient

log = structlog.get_logger(__name__)

PRODUCT: Final = "Tenantry"
# A term is a bigint: more digits are nobody's, and Python would refuse to read thousands of them.
_NAME: Final = re.compile(
    r"tenantry [^,]*(?:, of (?P<of>[a-z0-9-]+))?, term (?P<term>[0-9]{1,19})", re.ASCII
)

SHUT_OUT_SECONDS: Final = 2.0
"""How long the broker may take to close a connection before the takeover goes on without it."""


def client_properties(fence: TermFence, name: str) -> dict[str, str]:
    """Give what a connection tells the broker about itself: its term, so that others know it."""
    whose = f", of {fence.installation}" if fence.installation else ""
    term = "" if fence.number is None else f", term {fence.number}"
    return {"connection_name": f"tenantry {name}{whose}{term}", "product": PRODUCT}


def outlived(fence: TermFence, connection_name: str) -> bool:
    """Tell whether a connection of this name was made under an earlier term than the fence's.

    Any client may call its connection so: ask only of those that the broker knows to be our user's.
    """
    match = _NAME.fullmatch(connection_name)
    if match is None or fence.number is None or (match["of"] or "") != fence.installation:
        return False
    return int(match["term"]) < fence.number


def shut_out(management: ManagementClient, fence: TermFence, *, user: str) -> int:
    """Close the connections that were made under earlier terms; give how many there were.

    Ours are those of `user`, by which the broker has let them in. What a connection calls itself
    is said by its client, and so by tenants as well: it counts for nothing before that.
    A frozen daemon keeps its connections, and with them its deliveries. RabbitMQ answers once it
    has ended a connection's channels: their deliveries are in the queues again, and what that
    daemon has yet to send is not listened to. It may list the connection for half a minute longer,
    waiting for a client that says goodbye. A connection that it can't close in time is named in the
    log: its deliveries come later. Raises `BrokerError` where the connections can't be listed.
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


class FencedConnection(pika.SelectConnection):
    """A connection that sends nothing any more once its term has lapsed, and breaks instead.

    What a frozen daemon had ready to be sent when it was stopped, acknowledgements above all, stays
    unsent when it wakes up too late.
    """

    fence: TermFence = UNFENCED
    _breaking = False

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send frames; everything pika sends goes this way."""
        if self.fence.valid():
            super()._output_marshaled_frames(marshaled_frames)
        elif not self._breaking:
            # Not before the caller has returned: pika's heartbeat, for one, would go on with a
            # connection that is closed.
            self._breaking = True
            self._adapter_call_later(0, self._break_off_lapsed)

    def break_off(self, error: Exception) -> None:
        """End the connection at once, for this reason: nothing is said on it any more."""
        self._terminate_stream(error)

    def _break_off_lapsed(self) -> None:
        if not self.is_closed:
            self.break_off(BrokerUnavailableError(f"the term {self.fence.number} has lapsed"))


def fenced(by: TermFence) -> type[FencedConnection]:
    """Give the kind of connection that is under this fence from its first word on."""

    class Fenced(FencedConnection):
        fence = by

    return Fenced
