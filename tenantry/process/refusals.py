"""Why the daemon can't start, as whoever starts it needs it: the key, what is wrong, the remedy."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

from tenantry.settings import ENVIRONMENT, Settings

PROBE: Final = b"\0" * 4096
"""What is written to see whether anything can be."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class StartError(Exception):
    """What stands around the process keeps it from starting; the message is one clear line."""


def make_state_dir(settings: Settings) -> None:
    """Make the state directory, for its owner alone, and see that it can be written.

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
    """Say of an error that nobody has explained yet where it belongs, as far as that shows."""
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
    """Put a refusal into one line: the key, with its environment variable, what is wrong, help."""
    variable = ENVIRONMENT[key][0] if key in ENVIRONMENT else ""
    other = f"set {key} ({variable}) to another" if key else ""
    advice = ", or ".join(filter(None, (help_, other)))
    return f"{f'{key}: ' if key else ''}{what}{f'; {advice}' if advice else ''}"


def reason(error: BaseException) -> str:
    """Say what the system says, without its number."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def remedy(error: BaseException | None) -> str:
    """Say what can be done about what the system says."""
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
