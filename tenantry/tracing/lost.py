"""Counts spans that were recorded and did not arrive, also in a process without metrics page."""

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
    """Why spans were lost; the number is the index in the shared counts."""

    QUEUE = 0
    """The queue was full, for the span's tenant or as a whole."""

    EXPORT = 1
    """The collector was not reached, or refused the spans."""

    @property
    def word(self) -> str:
        """The reason's name in metrics."""
        return self.name.lower()


_TOTALS: Final = Struct(f"<{len(Reason)}Q")


class LostSpans:
    """Counts lost spans. Callable from any thread.

    With a `descriptor` of a `shared_file` it continues the counts in that file, and other processes
    can `read` them.
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
                with suppress(OSError):  # the next write includes these
                    os.pwrite(self._descriptor, _TOTALS.pack(*self._totals), 0)

    def totals(self) -> Mapping[str, int]:
        """Count them by reason, since the start."""
        with self._lock:
            return _by_word(self._totals)


def shared_file() -> IO[bytes]:
    """Make the file that another process counts in; the caller closes it. Raises `OSError`."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tenantry-lost-spans"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def read(file: IO[bytes]) -> Mapping[str, int]:
    """Return the totals that another process has counted; none where the file is closed."""
    try:
        return _by_word(_read(file.fileno()))
    except (OSError, ValueError):
        return {}


def _read(descriptor: int) -> list[int]:
    data = os.pread(descriptor, _TOTALS.size, 0)
    return list(_TOTALS.unpack(data)) if len(data) == _TOTALS.size else [0] * len(Reason)


def _by_word(totals: list[int]) -> Mapping[str, int]:
    return {reason.word: totals[reason] for reason in Reason}
