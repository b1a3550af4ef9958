"""Notices a broker that has fallen silent: its connections stay open, and nothing comes on them.

RabbitMQ sends something on every connection at least every half heartbeat. pika looks for that
too, but once in each heartbeat and 5 s, so that up to twice as long may pass.
"""

from __future__ import annotations

from typing import Final

from pika.adapters.select_connection import IOLoop
from pika.exceptions import AMQPHeartbeatTimeout

from tenantry.broker.rabbitmq.term_fence import FencedConnection

HEARTBEAT: Final = 8
"""Seconds, as AMQP has it: RabbitMQ gives us up after two to three without a word from us. Its
authors advise 6 to 15; below 5, what is merely busy is taken for dead."""

LOOK_EVERY: Final = 1.0

SILENT_AFTER: Final = 2 * HEARTBEAT
"""Looks that find nothing new until the broker is taken to be silent: four heartbeats missed."""


class SilenceWatch:
    """Breaks a connection on which nothing comes any more. Belongs to the loop's thread.

    Looks are counted, not seconds: the loop reads before it looks, and does neither while it is
    held up. So a daemon that was busy, or frozen, does not blame the broker for it.
    """

    def __init__(self, ioloop: IOLoop, connection: FencedConnection) -> None:
        self._ioloop = ioloop
        self._connection = connection
        self._received = connection.bytes_received
        self._silent = 0
        ioloop.call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        if not self._connection.is_open:
            return
        received = self._connection.bytes_received
        self._silent = self._silent + 1 if received == self._received else 0
        self._received = received
        if self._silent >= SILENT_AFTER:
            seconds = self._silent * LOOK_EVERY
            self._connection.break_off(
                AMQPHeartbeatTimeout(f"the broker has been silent for {seconds:.0f} s")
            )
            return
        self._ioloop.call_later(LOOK_EVERY, self._look)
