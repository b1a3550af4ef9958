"""The port of the store of terms. One contract suite holds every adapter to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

DAEMON: Final = "daemon"
"""The only scope in schemas before nodes, when the holder of its term acted for all tenants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A daemon that holds a term or wants to.

    `instance` stays the same over restarts of a daemon, and is unique to it: of two processes with
    the same `instance`, the earlier one is dead. Host and pid are for people.
    """

    instance: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a scope's term.

    `number` goes up with every holder, `beat` with every renewal. The term is not `held` once it
    was released; `since` is when it was taken.
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
        """Return the term's standing."""

    def take(self, seen: Standing, by: Holder) -> Standing | None:
        """Take the term, if it still stands as `seen`; return its new standing, or None.

        Once it has been taken, no write under an earlier term is committed any more. Only for a
        caller that knows that the holder is gone or has lapsed.
        """

    def renew(self, number: int) -> bool:
        """Show that the holder lives; return False if another daemon has the term by now."""

    def release(self, number: int) -> None:
        """Give the term back, so that another can take it at once; no effect on a lost term."""
