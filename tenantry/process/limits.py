"""What the kernel allows the process, and how it is shared out."""

from __future__ import annotations

import resource
from typing import Final

import structlog

from tenantry.process.refusals import StartError
from tenantry.settings import Settings

log: Final = structlog.get_logger("daemon")

OPEN_FILES: Final = 16_384
"""Files and sockets the process may have open; more only makes its children slower to start."""

OWN_FILES: Final = 28
"""What the daemon itself has open, at rest and with a broker."""

FRONT_FILES: Final = 34
"""What its front has open: 20 connections to the database among them."""

FEWEST_CONNECTIONS: Final = 8
"""Connections a listener must be able to have."""

REMEDY: Final = "raise the limit of open files (ulimit -n; LimitNOFILE= of a systemd unit)"


def allow_open_files(settings: Settings) -> None:
    """Raise the soft limit of open files as far as needed: clients of the API take one each.

    Raises `StartError` where the hard limit is too low for what is configured.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    allowed, needed = max(soft, wanted), needed_files(settings)
    if allowed < needed:
        raise StartError(
            f"database.pool_size: the process may open {allowed} files and needs {needed}, with "
            f"{settings.database.pool_size} connections to the database; {REMEDY} to 1024 or "
            "more, or lower database.pool_size (TENANTRY_DATABASE_POOL_SIZE)"
        )
    if allowed < OPEN_FILES:
        log.warning("daemon.few_open_files", limit=allowed, wanted=OPEN_FILES, remedy=REMEDY)


def reserved_files(settings: Settings) -> int:
    """Tell how many files are not for clients, whatever they do."""
    handlers = settings.handler.connections if settings.handlers else 0
    return OWN_FILES + settings.database.pool_size + handlers


def needed_files(settings: Settings) -> int:
    """Tell how many files the process must be allowed to open to work at all."""
    return reserved_files(settings) + 2 * FEWEST_CONNECTIONS


def connections(reserved: int, *, ways: int) -> int:
    """Share out what is left of the limit; `ways` is how many files a client may take at once."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        files = OPEN_FILES
    return max(FEWEST_CONNECTIONS, (files - reserved) // ways)
