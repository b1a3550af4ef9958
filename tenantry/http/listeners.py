"""The sockets the API listens on, bound before anything is served, with errors that say what."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tenantry.unixpath import addressed

_BACKLOG: Final = 512
# A socket is made with 0777 less the mask.
_GROUP: Final = 0o117


class ListenError(Exception):
    """An address can't be listened on; the message is one clear line."""


class TlsFilesError(ListenError):
    """The files of TLS can't be used; `file` is the one that can't be read, if it is that."""

    def __init__(self, message: str, file: Path | None = None) -> None:
        super().__init__(message)
        self.file = file


class ControlSocketBusyError(ListenError):
    """Another process serves the control socket."""


class ControlSocket:
    """The control socket: a Unix socket with mode 0660 from its first moment.

    A lock on a file beside it (`….lock`, which stays) tells whether a living process has the
    path: it is gone with its process, however that ended. So a stale socket is replaced, and a
    living one never. Raises `ListenError`.
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
        """Remove the socket, unless the path is somebody else's by now; may be called again."""
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
        # A name that is this machine's own (RFC 6761), whatever stands in its list of hosts.
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Read what TLS is served with, version 1.2 at least. Raises `TlsFilesError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for file in (certificate, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise TlsFilesError(f"can't read {file}: {_reason(error)}", file) from error
    try:
        # Without a word for it, OpenSSL would ask the terminal for an encrypted key's password.
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
        # The process's mask, for this one moment: no socket is ever there with a wider mode.
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
    """Remove the socket a killed process has left (we hold the lock), and nothing else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(
                f"can't make the control socket: {path} is there and is no socket: move it away"
            )
        path.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
