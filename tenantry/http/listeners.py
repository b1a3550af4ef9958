"""What the server listens on: the control socket, TCP, and the relay from the front.

Everything is bound before anything is served, with errors that say what is wrong.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import ssl
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from tenantry.unixpath import addressed

_BACKLOG: Final = 512
# A socket is made with 0777 less the mask.
_GROUP: Final = 0o117


class ListenError(Exception):
    """An address can't be listened on; the message is one clear line."""


class TlsFilesError(ListenError):
    """The files of TLS can't be used; `file` is set where it can't be read."""

    def __init__(self, message: str, file: Path | None = None) -> None:
        super().__init__(message)
        self.file = file


class ControlSocketBusyError(ListenError):
    """Another process serves the control socket."""


class ControlSocket:
    """The control socket: a Unix socket that has mode 0660 from the beginning.

    A lock on a file beside it (`….lock`, which stays) tells whether a living process serves the
    path: the kernel releases it with the process. So a stale socket is replaced, and one in use
    never. Raises `ListenError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        try:
            self.socket = _bind_unix(path)
            made = path.stat()
            self._inode = (made.st_dev, made.st_ino)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Remove the socket, unless another process has the path by now; may be called again."""
        self.socket.close()
        if self._lock < 0:
            return
        with suppress(OSError):
            there = self.path.lstat()
            if (there.st_dev, there.st_ino) == self._inode:
                self.path.unlink()
        os.close(self._lock)
        self._lock = -1


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on the first address of `host`; port 0 takes a free one. Raises `ListenError`."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, address = _resolved(host, port)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # At once: two sockets may be bound to an address as long as neither listens.
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except (OSError, UnicodeError, OverflowError) as error:
        if bound is not None:
            bound.close()
        raise ListenError(f"can't listen on {where}: {_reason(error)}") from error
    return bound


def _resolved(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        if host != "localhost":
            raise
        # `localhost` is this machine (RFC 6761), even if it does not resolve.
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load certificate and key for TLS 1.2 and newer. Raises `TlsFilesError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for file in (certificate, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise TlsFilesError(f"can't read {file}: {_reason(error)}", file) from error
    try:
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise TlsFilesError(
            f"can't serve TLS with {certificate} and {key}: they must be PEM, belong together, and "
            f"the key must not be encrypted ({getattr(error, 'reason', None) or error})"
        ) from error
    return context


def _lock(path: Path) -> int:
    beside = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ListenError(f"can't lock the control socket {path}: {_reason(error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ControlSocketBusyError(
            f"another daemon serves the control socket {path}: stop it, or choose another socket"
        ) from None
    except OSError as error:
        os.close(lock)
        raise ListenError(f"can't lock the control socket {path}: {_reason(error)}") from error
    return lock


def _bind_unix(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        # With the process's umask, so that the socket never has a wider mode.
        before = os.umask(_GROUP)
        try:
            with addressed(path) as address:
                bound.bind(address)
        finally:
            os.umask(before)
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise ListenError(f"can't make the control socket {path}: {_reason(error)}") from error
    except BaseException:
        bound.close()
        raise
    return bound


def _clear(path: Path) -> None:
    """Remove the socket of a killed process (we hold the lock), and nothing else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(
                f"can't make the control socket: {path} is there and is no socket: move it away"
            )
        path.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


NOTE: Final = b"\0"
"""The byte sent along with a descriptor: a stream needs one."""


_FD_BYTES: Final = array.array("i").itemsize


class Relay:
    """Both ends of a relay. `far` is for the front, also after it was restarted."""

    def __init__(self) -> None:
        near, far = socket.socketpair()
        for one in (near, far):
            one.setblocking(False)
        self.near: Final[socket.socket] = _Acceptor(near)
        # Kept open here, so that the near end is not closed while the front is restarted.
        self.far: Final = far

    def close(self) -> None:
        """Close both ends; connections are refused then."""
        self.near.close()
        self.far.close()


class SharedRelay:
    """The near end of a relay whose far end another process has; siblings may accept from it."""

    def __init__(self, descriptor: int) -> None:
        self.near: Final[socket.socket] = _Acceptor(socket.socket(fileno=descriptor))

    def close(self) -> None:
        """Accept no more connections here."""
        self.near.close()


class _Acceptor(socket.socket):
    """A listening socket for a server that accepts the descriptors passed to it."""

    def __init__(self, near: socket.socket) -> None:
        super().__init__(near.family, near.type, near.proto, fileno=near.detach())

    def listen(self, backlog: int = 0) -> None:
        """Do nothing: the other end exists already."""

    def accept(self) -> tuple[socket.socket, str]:
        """Accept the next connection. Raises `BlockingIOError` if there is none."""
        # The kernel closes a connection that arrives while no descriptor is free.
        _, ancillary, _, _ = self.recvmsg(
            len(NOTE), socket.CMSG_SPACE(_FD_BYTES), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= _FD_BYTES:
                return socket.socket(fileno=array.array("i", data[:_FD_BYTES])[0]), ""
        raise BlockingIOError


HANDSHAKES_OF_A_CLIENT: Final = 64
"""TLS handshakes of one address that may last longer than `HURRY_SECONDS`."""

HURRY_SECONDS: Final = 1.0
"""Seconds in which a handshake does not count against its client."""


class Handshakes:
    """The accepted connections whose TLS handshake is not done. Used on the event loop alone.

    A client with too many loses its oldest one to the next; if there are too many in all, the
    client with most loses its oldest. asyncio ends those that take too long.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._addresses: dict[int, str] = {}
        self._pending: dict[str, dict[int, tuple[socket.socket, float]]] = {}

    def begin(self, connection: socket.socket, address: str) -> None:
        """Add a connection that has just been accepted."""
        self.end(connection.fileno())  # an earlier connection with this descriptor has been closed
        if len(self._addresses) >= self._most:
            self._forget_closed()
        if len(self._addresses) >= self._most:
            self._end_oldest(max(self._pending, key=lambda one: len(self._pending[one])))
        now = time.monotonic()
        self._addresses[connection.fileno()] = address
        pending = self._pending.setdefault(address, {})
        pending[connection.fileno()] = (connection, now)
        while len(pending) > HANDSHAKES_OF_A_CLIENT:
            oldest, since = next(iter(pending.values()))
            if oldest.fileno() >= 0 and now - since < HURRY_SECONDS:
                break
            self._end_oldest(address)

    def end(self, number: int) -> None:
        """Remove a connection, by its descriptor: its handshake is done."""
        address = self._addresses.pop(number, None)
        if address is not None:
            del self._pending[address][number]
            if not self._pending[address]:
                del self._pending[address]

    def _end_oldest(self, address: str) -> None:
        number, (oldest, _) = next(iter(self._pending[address].items()))
        self.end(number)
        with suppress(OSError):  # closed already, or its client has gone
            # The transport sees the end, and closes its socket.
            oldest.shutdown(socket.SHUT_RDWR)

    def _forget_closed(self) -> None:
        for pending in list(self._pending.values()):
            for number, (connection, _) in list(pending.items()):
                if connection.fileno() < 0:
                    self.end(number)


_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

SHED_PAUSE: Final = 0.05
"""Seconds to wait if there is no descriptor even to turn a client away."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Shedding(socket.socket):
    """A listening socket, wrapped to keep one descriptor in reserve.

    Without a free descriptor a waiting client keeps the socket readable, and asyncio logs an error
    a thousand times a second. The reserve is used to accept such a client and close it.
    """

    def __init__(self, listening: socket.socket, handshakes: Handshakes | None = None) -> None:
        """With `handshakes`, accepted clients begin with a TLS handshake."""
        super().__init__(
            listening.family, listening.type, listening.proto, fileno=listening.detach()
        )
        self.setblocking(False)
        self._told = False
        self._handshakes = handshakes
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next client. Raises `BlockingIOError` if there is none."""
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
            # Blocks everything: without descriptors nothing else could go on either.
            time.sleep(SHED_PAUSE)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "api.no_descriptor_left",
                reason=error.strerror,
                remedy="clients are turned away; raise the limit of open files (LimitNOFILE=)",
            )
