"""What a broker has, and how it differs from what tenants need. Pure; adapters fill `Survey`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple


class DriftKind(StrEnum):
    """What has drifted; a bounded set, so that it may be a metric's label."""

    EXCHANGE = "exchange"
    QUEUE = "queue"
    ARGUMENTS = "arguments"
    SILENT = "silent"
    BINDING = "binding"
    CONSUMER = "consumer"
    USER = "user"
    PASSWORD = "password"  # noqa: S105 - a word, no password
    LOST_PASSWORD = "lost_password"  # noqa: S105 - as above
    PERMISSIONS = "permissions"
    FOREIGN = "foreign"
    LIMITS = "limits"
    PARTITION = "partition"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference; `found` says in a few words what is wrong with what."""

    kind: DriftKind
    found: str

    @property
    def mendable(self) -> bool:
        """Whether making what is missing repairs it.

        A queue's arguments can't be changed, and another installation's objects are not touched.
        """
        return self.kind not in _REMEDIES

    @property
    def remedy(self) -> str:
        """What an operator has to do if the drift can't be repaired; otherwise empty."""
        return _REMEDIES.get(self.kind, "")


LOST_PASSWORD: Final = "lost"  # noqa: S105 - as above
"""In place of a hash: the password is lost, and this broker can't set one by its hash."""

_EMPTY_IT: Final = "take out what is in it, and delete it: it is made again as it should be"
_REMEDIES: Final = {
    DriftKind.ARGUMENTS: _EMPTY_IT,
    DriftKind.SILENT: _EMPTY_IT,
    DriftKind.LOST_PASSWORD: "rotate its credentials: this broker sets no password by its hash",
    DriftKind.FOREIGN: "two installations must not share tenant ids on one server: delete the"
    " tenant in one of them; if the other is no more, delete the user, and it is made again",
}


class Permissions(NamedTuple):
    """Patterns of the names a user may configure, write to and read from."""

    configure: str
    write: str
    read: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A broker user: its password's hash, its tags, and its permissions in our virtual host.

    `marks` are the installations whose marks it carries, which are not among its tags; `elsewhere`
    are other places of the same server that it may enter.
    """

    password_hash: str = field(repr=False)
    tags: frozenset[str] = frozenset()
    permissions: Permissions | None = None
    """None: it has no access."""
    marks: frozenset[str] = frozenset()
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The tenants' objects in a virtual host at a moment."""

    exchanges: Mapping[str, str]
    """Durable exchanges and their types."""
    queues: Mapping[str, Mapping[str, object]]
    """Durable queues and their arguments."""
    bindings: frozenset[tuple[str, str, str]]
    """Exchange, queue, routing key."""
    users: Mapping[str, User]
    consumed: frozenset[str]
    """Queues that have a consumer of our own user."""
    copies: bool = False
    """Whether tenants' own consumers read copies, from the queues of their groups."""
    limits: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """The settings that enforce tenants' limits, by tenant and place; comparable to `limits_of`."""
    installation: str = ""
    """The installation that made the survey; empty if no other one has users there."""
