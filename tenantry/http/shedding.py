"""Listening where descriptors may run out: then clients are turned away, and not left to wait."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from typing import Any, Final

import structlog

from tenantry.http.handshakes import Handshakes

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

PAUSE: Final = 0.05
"""Seconds to wait where not even a client can be turned away."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Shedding(socket.socket):
    """A listening socket that takes another's place, and keeps a descriptor in reserve.

    With none left, a client that waits would make the socket ready for ever; asyncio complains of
    it a thousand times a second. The reserve is what such a client is accepted with, and let go.
    """

    def __init__(self, listening: socket.socket, handshakes: Handshakes | None = None) -> None:
        """With `handshakes`, clients that are accepted begin one."""
        super().__init__(
            listening.family, listening.type, listening.proto, fileno=listening.detach()
        )
        self.setblocking(False)
        self._told = False
        self._handshakes = handshakes
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next client. Raises `BlockingIOError` where there is none to be served."""
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._tell(error)
            self._turn_away()
            raise BlockingIOError(errno.EAGAIN, "no descriptor is free") from error
        if self._handshakes is not None:
            self._handshakes.begin(connection, str(address[0]))
        return connection, address

    def close(self) -> None:
        """Stop listening."""
        super().close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _turn_away(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        turned_away = False
        with suppress(OSError):
            client, _ = super().accept()
            client.close()
            turned_away = True
        with suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if not turned_away or self._reserve < 0:
            time.sleep(PAUSE)  # all else has to wait as well: there is nothing to work with

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "api.no_descriptor_left",
                reason=error.strerror,
                remedy="clients are turned away; raise the limit of open files (LimitNOFILE=)",
            )
