"""The way between the daemon and its front: connections over a pair of sockets that both inherit.

The front makes a connection and passes one end on; the daemon accepts it as from a listener. So
there is no path in it that could be too long, not writable, or somebody else's.
"""

from __future__ import annotations

import array
import socket
from typing import Final

NOTE: Final = b"\0"
"""What a descriptor travels with: a stream carries none without a byte."""


_SIZE: Final = array.array("i").itemsize


class Relay:
    """Both ends of the way. `far` is for the front, over any number of its lives."""

    def __init__(self) -> None:
        near, far = socket.socketpair()
        for one in (near, far):
            one.setblocking(False)
        self.near: Final[socket.socket] = _Acceptor(near)
        # Kept open here, so that the near end never sees an end while no front lives.
        self.far: Final = far

    def close(self) -> None:
        """Close both ends; whoever passes a connection on is refused from now on."""
        self.near.close()
        self.far.close()


class _Acceptor(socket.socket):
    """A socket that accepts the connections that are passed to it, for a server to listen on."""

    def __init__(self, near: socket.socket) -> None:
        super().__init__(near.family, near.type, near.proto, fileno=near.detach())

    def listen(self, backlog: int = 0) -> None:
        """Do nothing: the other end is there already."""

    def accept(self) -> tuple[socket.socket, str]:
        """Take the next connection. Raises `BlockingIOError` where there is none."""
        # One that comes when no descriptor is free is closed by the kernel: its maker sees the end.
        _, ancillary, _, _ = self.recvmsg(
            len(NOTE), socket.CMSG_SPACE(_SIZE), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= _SIZE:
                return socket.socket(fileno=array.array("i", data[:_SIZE])[0]), ""
        raise BlockingIOError
