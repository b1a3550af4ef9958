"""What a place that keeps terms promises. One contract suite holds every adapter to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

DAEMON: Final = "daemon"
"""The scope of the schemas before nodes, when the holder of its term acted for all tenants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A daemon that holds a term or would.

    `instance` is the same over restarts of one daemon, and no other's: of two processes with the
    same, the earlier one is dead. Host and process number are for people.
    """

    instance: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a scope's term stands.

    `number` goes up with every holder, `beat` with every renewal. It is not `held` once it was
    released; `since` is when it was taken.
    """

    number: int
    beat: int
    held: bool
    holder: Holder
    since: datetime


class Terms(Protocol):
    """The terms of one scope. Callable from any thread; every call is bounded in time.

    Every call may raise `UnavailableError` (one line), and have had its effect nevertheless.
    """

    def look(self) -> Standing:
        """Tell how the term stands."""

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        """Take the term, if it still stands as `seen`; give it as it stands then, or None.

        Once it has been taken, nothing that was written under an earlier one is committed
        any more. Only for a caller that knows that the holder is gone or has lapsed.
        """

    def renew(self, number: int) -> bool:
        """Show that the holder lives; False if the term is another's by now."""

    def release(self, number: int) -> None:
        """Give the term back, so that another takes it at once; of a lost one, do nothing."""
