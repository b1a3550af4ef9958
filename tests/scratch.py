"""Where the tests' servers keep their data: in memory, where the machine has a file system there.

A database is some three hundred files, made and removed for hundreds of tests. On a disk that
costs more processor time than all that is done in them; and a write that nobody waits for is not
what these servers are for. They end by signals, never by a power cut.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MEMORY = Path("/dev/shm")
ENOUGH = 2_000_000_000
"""Bytes that must be free there; a container often has 64 MB."""

LONGEST_FOR_SOCKETS = 80


def made(prefix: str) -> Path:
    """Make an empty directory for a server; its maker removes it.

    What makers that were killed have left in memory is removed first.
    """
    with suppress(OSError):
        _sweep(prefix)
        if MEMORY.is_mount() and shutil.disk_usage(MEMORY).free >= ENOUGH:
            return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=MEMORY))
    return Path(tempfile.mkdtemp(prefix=prefix))


def _sweep(prefix: str) -> None:
    for path in MEMORY.glob(f"{prefix}[0-9]*-*"):
        maker = path.name.removeprefix(prefix).partition("-")[0]
        if maker.isdecimal() and not psutil.pid_exists(int(maker)):
            shutil.rmtree(path, ignore_errors=True)


def short(prefix: str) -> Path:
    """Make an empty directory whose path leaves room for a Unix socket's name."""
    path = made(prefix)
    if len(os.fsencode(path)) <= LONGEST_FOR_SOCKETS:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))


@contextmanager
def directory(prefix: str) -> Iterator[Path]:
    """Give an empty directory for a server, and remove it afterwards."""
    path = made(prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
