"""Terms in memory: for tests, and for knowing what the others must do."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

from tenantry.terms.port import Holder, Standing

_NOBODY = Holder(instance="", host="", pid=0)


class InMemoryTerms:
    """The terms of one scope (`tenantry.terms.port.Terms`), shared by whoever has the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing = Standing(
            number=0, beat=0, held=False, holder=_NOBODY, since=datetime.now(UTC)
        )

    def look(self) -> Standing:
        """See `Terms.look`."""
        return self._standing

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        """See `Terms.take`."""
        with self._lock:
            now = self._standing
            if (now.number, now.beat) != (seen.number, seen.beat):
                return None
            self._standing = Standing(
                number=now.number + 1,
                beat=now.beat + 1,
                held=True,
                holder=by,
                since=datetime.now(UTC),
            )
            return self._standing

    def renew(self, number: int) -> bool:
        """See `Terms.renew`."""
        with self._lock:
            mine = self._standing.held and self._standing.number == number
            if mine:
                self._standing = replace(self._standing, beat=self._standing.beat + 1)
            return mine

    def release(self, number: int) -> None:
        """See `Terms.release`."""
        with self._lock:
            if self._standing.held and self._standing.number == number:
                self._standing = replace(self._standing, beat=self._standing.beat + 1, held=False)
