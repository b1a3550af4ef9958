"""Whose a tenant's user is: users are a whole server's, and one server may serve several of us.

Each installation (one database and what runs on it) has a name, and its users carry it. What
carries another's, or nobody's without being provably ours, is refused and never taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tenantry.broker.port import PasswordHash
from tenantry.broker.survey import User

NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
"""What an installation's name looks like."""

_PREFIX: Final = "tenantry-"
_MARK: Final = re.compile(rf"\b{_PREFIX}({NAME.pattern})")


def mark_of(installation: str) -> str:
    """Give the word by which a user is known to be an installation's."""
    return _PREFIX + installation


def marks_in(words: Iterable[str]) -> frozenset[str]:
    """Name the installations whose marks are among some words, tags for example."""
    return frozenset(
        match[1] for word in words if (match := _MARK.fullmatch(word.strip())) is not None
    )


def stranger(user: User, installation: str, known: PasswordHash | None) -> str | None:
    """Say whose a user is, where it is not ours; None, where it is.

    One without any mark, as they were made once, is ours if it enters nothing but our place, and
    if it has the password that is `known` of the tenant, or rights there and a tenant of ours.
    """
    others = user.marks - {installation}
    if others:
        return f"belongs to the installation {', '.join(sorted(others))}"
    if user.marks:
        return None
    if user.elsewhere:
        return f"carries no installation's mark, and has rights in {', '.join(user.elsewhere)}"
    proven = known is not None and (
        user.permissions is not None or (known.value != "" and user.password_hash == known.value)
    )
    return None if proven else "carries no installation's mark, and is not known to be ours"
