"""Unix sockets whose paths are longer than a socket's address can be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_SOCKET_PATH: Final = 107 if os.uname().sysname == "Linux" else 103
"""Bytes a socket's address has room for."""

_OPEN: Final = Path("/proc/self/fd")


@contextmanager
def addressed(path: Path) -> Iterator[str]:
    """Yield an address by which to bind or connect to a socket at `path`, however long that is.

    The address is valid in the block. Raises `OSError` where the directory can't be reached.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield os.fspath(path)
        return
    # Through the open directory's descriptor the path to the socket is short.
    flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
    directory = os.open(path.parent, flags)
    try:
        if _OPEN.exists():
            yield str(_OPEN / str(directory) / path.name)
            return
        with tempfile.TemporaryDirectory(prefix="tenantry-", dir="/tmp") as short:
            link = Path(short, "d")
            link.symlink_to(path.parent, target_is_directory=True)
            yield str(link / path.name)
    finally:
        os.close(directory)
