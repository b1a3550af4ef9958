"""Server-sent events, as a client reads them."""

from __future__ import annotations

import httpx


class EventStream:
    """The blocks of an answer that is a stream, one by one."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def block(self) -> dict[str, str]:
        """Give the next block's fields; a comment is named by the empty text. Raises `EOFError`."""
        fields = {}
        for line in self._lines:
            if not line:
                return fields
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        raise EOFError
