"""Just enough of PostgreSQL's protocol to notice that a client asks for a commit."""

from __future__ import annotations

from collections.abc import Iterator

STORE = b"tenantry.store_messages"


class Commits:
    """Reads one client's bytes, and notices a commit: a call that stores a batch, or COMMIT."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False
        self._statements: dict[bytes, bool] = {}
        self._commits = False

    def feed(self, data: bytes) -> bool:
        """Read a piece; return whether the server commits once it has it."""
        self._buffer += data
        asked = False
        for kind, body in self._messages():
            match kind:
                case b"P":
                    name, _, rest = body.partition(b"\0")
                    self._statements[name] = _commits(rest)
                case b"B":
                    _portal, statement, *_ = body.split(b"\0", 2)
                    self._commits = self._commits or self._statements.get(statement, False)
                case b"Q":
                    asked = asked or _commits(body)
                case b"S":
                    asked, self._commits = asked or self._commits, False
        return asked

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Take complete messages off the buffer."""
        while True:
            # The first message of a connection, and a request for encryption, have no kind.
            head = 1 if self._started else 0
            if len(self._buffer) < head + 4:
                return
            length = int.from_bytes(self._buffer[head : head + 4])
            if len(self._buffer) < head + length:
                return
            kind, body = self._buffer[:head], self._buffer[head + 4 : head + length]
            self._buffer = self._buffer[head + length :]
            if not self._started:
                # 80877103 asks for TLS, 80877104 for GSSAPI; the start comes after.
                self._started = int.from_bytes(body[:4]) not in (80877103, 80877104)
            yield kind, body


def _commits(query: bytes) -> bool:
    return STORE in query or query.strip(b"\0 ;\n").upper().startswith(b"COMMIT")
