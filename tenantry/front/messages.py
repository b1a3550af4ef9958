"""What the daemon tells its front, a line of JSON each, on the front's standard input.

First how to serve, then, once the daemon has them, what to work with; at last to stop. Whose tokens
are to be taken it tells again when that changes.
The end of the input without that means that the daemon is gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """How to serve: the descriptors of the listening socket and of the relay's far end.

    `secrets` are those of our own tokens, `provider` the fields of the `Provider` of others; `tls`
    names the files of a certificate and its key; `tracing` has the fields of the `Export` of spans.
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
    """Where messages are, the key of cursors (in hexadecimal digits), and where messages go.

    `broker` is what `select.open_publishing` takes. To the database there may be `pool_size`
    connections, and `page_connections` that read pages.
    """

    database_url: str
    cursor_key: str
    broker: Mapping[str, str]
    pool_size: int = 20
    page_connections: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Take tokens signed with these secrets, and no others."""

    secrets: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Let requests end, then end."""


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
