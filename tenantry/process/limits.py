"""What the kernel allows the process."""

from __future__ import annotations

import resource
from typing import Final

import structlog

log: Final = structlog.get_logger("daemon")

OPEN_FILES: Final = 16_384
"""Files and sockets the process may have open; more only makes its children slower to start."""


def allow_open_files() -> None:
    """Raise the soft limit of open files as far as needed: clients of the API take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < OPEN_FILES:
        log.warning("daemon.few_open_files", limit=max(soft, wanted), wanted=OPEN_FILES)
