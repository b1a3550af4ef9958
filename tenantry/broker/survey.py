"""What a broker has, and how it differs from what tenants need. Pure; adapters fill `Survey`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class DriftKind(StrEnum):
    """What has drifted: bounded, so that it may be a metric's label."""

    EXCHANGE = "exchange"
    QUEUE = "queue"
    ARGUMENTS = "arguments"
    SILENT = "silent"
    BINDING = "binding"
    CONSUMER = "consumer"
    USER = "user"
    PASSWORD = "password"  # noqa: S105 - a word, no password
    PERMISSIONS = "permissions"
    PARTITION = "partition"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference; `found` says in a few words what is wrong with what."""

    kind: DriftKind
    found: str

    @property
    def mendable(self) -> bool:
        """Whether making what is missing mends it: a queue's arguments can't be changed."""
        return self.kind not in {DriftKind.ARGUMENTS, DriftKind.SILENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A broker user: the hash of its password, its tags, what it may do in our virtual host."""

    password_hash: str = field(repr=False)
    tags: frozenset[str] = frozenset()
    permissions: tuple[str, str, str] | None = None
    """Patterns of what it may configure, write to and read from; None: it may not enter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A virtual host at a moment, as far as it concerns tenants."""

    exchanges: Mapping[str, str]
    """Durable exchanges and their types."""
    queues: Mapping[str, Mapping[str, object]]
    """Durable queues and their arguments."""
    bindings: frozenset[tuple[str, str, str]]
    """Exchange, queue, routing key."""
    users: Mapping[str, User]
    consumed: frozenset[str]
    """Queues that have a consumer of our own user."""
