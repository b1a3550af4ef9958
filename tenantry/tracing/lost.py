"""Spans that were recorded and did not arrive, counted: also in a process that nobody scrapes."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from struct import Struct
from typing import IO, Final


class Reason(IntEnum):
    """Why spans were lost; its number is its place where counts are shared."""

    QUEUE = 0
    """No place was free to wait in, for its tenant or for anybody."""

    EXPORT = 1
    """Who collects them was not reached, or refused them."""

    @property
    def word(self) -> str:
        """What metrics call it."""
        return self.name.lower()


_TOTALS: Final = Struct(f"<{len(Reason)}Q")


class LostSpans:
    """Counts lost spans. Callable from any thread.

    With a `descriptor` of `shared_file` it goes on with what is counted there, and others can see
    it by `read`.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._totals = [0] * len(Reason) if descriptor is None else _read(descriptor)

    def add(self, reason: Reason, count: int = 1) -> None:
        """Count some more."""
        with self._lock:
            self._totals[reason] += count
            if self._descriptor is not None:
                with suppress(OSError):  # it is told with the next ones
                    os.pwrite(self._descriptor, _TOTALS.pack(*self._totals), 0)

    def totals(self) -> Mapping[str, int]:
        """Count them by reason, since the start."""
        with self._lock:
            return _by_word(self._totals)


def shared_file() -> IO[bytes]:
    """Make what another process counts in, for the caller to close. Raises `OSError`."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tenantry-lost-spans"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def read(file: IO[bytes]) -> Mapping[str, int]:
    """Give the totals that another process has counted; none where the file is closed."""
    try:
        return _by_word(_read(file.fileno()))
    except (OSError, ValueError):
        return {}


def _read(descriptor: int) -> list[int]:
    data = os.pread(descriptor, _TOTALS.size, 0)
    return list(_TOTALS.unpack(data)) if len(data) == _TOTALS.size else [0] * len(Reason)


def _by_word(totals: list[int]) -> Mapping[str, int]:
    return {reason.word: totals[reason] for reason in Reason}
