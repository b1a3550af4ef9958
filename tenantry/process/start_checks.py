"""Checks whether the daemon can start; errors name the key, the problem and the remedy."""

from __future__ import annotations

import errno
import os
import resource
import socket
from pathlib import Path
from typing import Final

import structlog

from tenantry.broker import select
from tenantry.settings import ENVIRONMENT, Settings, SettingsError
from tenantry.tracing import Export, is_installed

PROBE: Final = b"\0" * 4096
"""The bytes written to check that the directory is writable."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

_TRACES: Final = "/v1/traces"
"""The path at which a collector takes spans, by OTLP over HTTP."""


class StartError(Exception):
    """The process's environment keeps it from starting; the message is one clear line."""


def make_state_dir(settings: Settings) -> None:
    """Create the state directory, for its owner alone, and check that it is writable.

    Raises `StartError`.
    """
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        try:
            with probe.open("xb") as file:
                file.write(PROBE)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        what = f"can't keep anything in {directory}: {reason(error)}"
        raise StartError(line("state_dir", what, remedy(error))) from error


def explained(error: OSError, settings: Settings) -> StartError:
    """Turn an unexplained system error into a `StartError` that names the likely key."""
    key = "state_dir"
    named = Path(os.fsdecode(error.filename)) if error.filename else None
    if named is not None and settings.state_dir not in (named, *named.parents):
        socket_dir = settings.control_socket.parent
        key = "control.socket" if socket_dir in (named, *named.parents) else ""
    what = reason(error) if named is None else f"{named}: {reason(error)}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        key = ""
    return StartError(line(key, what, remedy(error)))


def line(key: str, what: str, help_: str) -> str:
    """Format a refusal in one line: the key and its environment variable, the problem, help."""
    variable = ENVIRONMENT[key][0] if key in ENVIRONMENT else ""
    other = f"set {key} ({variable}) to another" if key else ""
    advice = ", or ".join(filter(None, (help_, other)))
    return f"{f'{key}: ' if key else ''}{what}{f'; {advice}' if advice else ''}"


def reason(error: BaseException) -> str:
    """Return the system's message without its error number."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def remedy(error: BaseException | None) -> str:
    """Return the remedy for an error of the system."""
    if isinstance(error, socket.gaierror):
        return "name an address of this machine"
    match getattr(error, "errno", None):
        case errno.EACCES | errno.EPERM:
            return f"let user {os.geteuid()} write there"
        case errno.EROFS:
            return "mount it so that it can be written"
        case code if code in _FULL:
            return "make room there"
        case errno.EEXIST | errno.ENOTDIR:
            return "move the file away that is in its place"
        case errno.ENOENT:
            return "make the directory it is in"
        case errno.ENAMETOOLONG:
            return "choose shorter names"
        case errno.EADDRINUSE:
            return "stop what listens there"
        case errno.EADDRNOTAVAIL:
            return "name an address of this machine"
        case errno.EMFILE | errno.ENFILE:
            return "raise the limit of open files (ulimit -n, LimitNOFILE=)"
        case _:
            return ""


log: Final = structlog.get_logger("daemon")

OPEN_FILES: Final = 16_384
"""Files and sockets the process may have open; more only makes its children slower to start."""

OWN_FILES: Final = 28
"""Files the daemon itself has open, at rest and with a broker."""

FRONT_FILES: Final = 50
"""Files its front has open, including 36 connections to the database."""

FEWEST_CONNECTIONS: Final = 8
"""The fewest connections that a listener must be able to have."""

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
    """Return how many files are reserved, and not for clients."""
    handlers = settings.handler.connections if settings.handlers else 0
    return OWN_FILES + settings.database.pool_size + handlers


def needed_files(settings: Settings) -> int:
    """Return how many files the process must be allowed to open to work at all."""
    return reserved_files(settings) + 2 * FEWEST_CONNECTIONS


def connections(reserved: int, *, ways: int) -> int:
    """Return how many clients the remaining files allow; a client may take `ways` files."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        files = OPEN_FILES
    return max(FEWEST_CONNECTIONS, (files - reserved) // ways)


def export_of(settings: Settings) -> Export | None:
    """Return where to export spans; None if tracing is off.

    Raises `SettingsError` where the exporting packages are not installed.
    """
    given = settings.tracing
    if not given.endpoint:
        return None
    if not is_installed():
        raise SettingsError(
            "tracing.endpoint: what exports traces is not installed: "
            "pip install 'tenantry[tracing]'"
        )
    return Export(
        endpoint=given.endpoint.removesuffix(_TRACES) + _TRACES,
        service_name=given.service_name,
        system=select.system(settings),
        sample_ratio=given.sample_ratio,
        timeout=given.timeout_seconds,
        headers=given.header_table,
    )
