"""Where a request came in, as the server says it: nothing a client sends can change it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_KEY: Final = "tenantry.connection"

RELAYED_PEER: Final = b"tenantry-peer"
"""The header in which the front names a request's peer, on the socket that is the front's alone."""


class Listener(StrEnum):
    """Which door a request came through."""

    CONTROL = "control"
    TCP = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A request's listener and peer.

    `peer` names the peer's credentials on the control socket and its address on TCP. `closing`
    is set once the server is about to stop, so that whoever waits can answer.
    """

    listener: Listener
    peer: str
    closing: asyncio.Event | None = None


# What no listener has marked is treated as the least trusted.
_UNKNOWN: Final = Connection(listener=Listener.TCP, peer="unknown")


def mark(scope: MutableMapping[str, Any], connection: Connection) -> None:
    """Note on a request's scope how it came in. Only listeners do this."""
    scope[_KEY] = connection


def connection_of(scope: MutableMapping[str, Any]) -> Connection:
    """Tell how a request came in."""
    found = scope.get(_KEY)
    return found if isinstance(found, Connection) else _UNKNOWN
