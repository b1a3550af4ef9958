"""Messages from the daemon to its front: lines of JSON on the front's standard input.

The first is `Serve`; `WorkWith` follows once the daemon has its backends, and `Trust` whenever the
secrets of accepted tokens change. The last is `Stop`. If the input ends without it, the daemon is
gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """How to serve: the descriptors of the listening socket and of the relay's far end.

    `secrets` sign Tenantry's own tokens; `provider` has the fields of an identity `Provider`, `tls`
    the paths of a certificate and its key, `tracing` the fields of the `Export` of spans.
    """

    descriptor: int
    relay: int
    secrets: list[str]
    provider: dict[str, Any] | None
    tls: tuple[str, str] | None
    log_level: str
    log_format: str
    tracing: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkWith:
    """The database with the messages, the key of cursors (in hexadecimal digits), and the broker.

    `select.open_publishing` takes `broker`. The front may open `pool_size` connections to the
    database for its threads, `page_connections` more to read pages, and `publish_connections` to
    publish without a thread.
    """

    database_url: str
    cursor_key: str
    broker: Mapping[str, str]
    pool_size: int = 20
    page_connections: int = 8
    publish_connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Take tokens signed with these secrets, and no others."""

    secrets: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Finish the requests in flight, then end."""


Message = Serve | WorkWith | Trust | Stop

_MESSAGES: Final[dict[str, type[Message]]] = {
    one.__name__: one for one in (Serve, WorkWith, Trust, Stop)
}


def write(message: Message) -> bytes:
    """Write a message as a line."""
    return json.dumps({"message": type(message).__name__, **asdict(message)}).encode() + b"\n"


def read(line: bytes) -> Message:
    """Read a message from a line."""
    fields: dict[str, Any] = json.loads(line)
    return _MESSAGES[fields.pop("message")](**fields)
