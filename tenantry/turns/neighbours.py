"""Quiet neighbours: tenants with a message now and then, beside others that have a backlog."""

from __future__ import annotations

from math import inf
from typing import Final, TypeAlias

LATELY: Final = 1.0
"""Seconds after a tenant's few messages for which it counts as a quiet neighbour."""

_Seen: TypeAlias = tuple[str, float]


class Neighbours:
    """Tells a tenant with a backlog whether quiet tenants work beside it. Callable from any thread.

    It remembers the two tenants that were seen last. Of two that are noted in the same instant one
    may be missed, until its next message.
    """

    def __init__(self) -> None:
        self._seen: tuple[_Seen, _Seen] = (("", -inf), ("", -inf))

    def note(self, tenant_id: str, now: float) -> None:
        """Note that a tenant had few messages, which were given out at once."""
        latest, before = self._seen
        self._seen = ((tenant_id, now), before if latest[0] == tenant_id else latest)

    def beside(self, tenant_id: str, now: float) -> bool:
        """Tell whether another tenant was quiet lately."""
        latest, before = self._seen
        _, at = before if latest[0] == tenant_id else latest
        return now - at < LATELY
