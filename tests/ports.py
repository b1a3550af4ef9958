"""Ports for servers of tests."""

from __future__ import annotations

import socket
from random import SystemRandom

# Below the range that Linux takes the ports of connections and of servers without a number from:
# it would now and then give one away before its server has started. Nodes of RabbitMQ choose above.
_PORTS = range(10_000, 20_000)


def free_port() -> int:
    """Give a port of 127.0.0.1 that nobody listens on, and that no other test is ever given."""
    for port in SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as claim:
            try:
                # A name that only one process of this machine has; it needs no file, and is free
                # again when the process has ended.
                claim.bind(f"\0tenantry-test-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            claim.detach()
            return port
    raise AssertionError("no port is free")
