"""The error of every port whose broker, database or server can't be reached."""

from __future__ import annotations


class UnavailableError(Exception):
    """A resource that a step needs outside the daemon is away; the same step may succeed later.

    Each port raises a subclass of its own. The step may have had its effect nevertheless.
    """
