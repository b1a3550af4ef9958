"""The ledger's entry of a message, and how the message's content is recognised again."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, Literal, TypeAlias

Fate: TypeAlias = Literal["stored", "dead_lettered", "either"]

KEY_HEADER = "ledger"
"""The header with the ledger's key of a message whose AMQP id is missing or can't be the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The routing key of messages, and the topic and partition where they must turn up."""

    routing_key: str
    topic: str
    partition: int


DEFAULT = Target(routing_key="default", topic="default", partition=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A message as it was sent: its place, digests of its content, and what must become of it."""

    target: Target
    content_type: str | None
    sha256: str
    meaning: str | None = None
    """A digest of what the JSON says: `jsonb` formats the text anew."""
    fate: Fate = "stored"
    opaque: bool = False
    """The content type is not text, so the type that a reader shows is not compared."""
    sender: str = ""
    number: int = 0
    """The message's number among its sender's, in the order of publishing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A message to send. `key` names it in the ledger; without headers it is the message id."""

    key: str
    message_id: str | bytes | None
    body: bytes
    content_type: str | bytes | None = None
    headers: Mapping[str, Any] | None = None
    fate: Fate = "stored"
    target: Target | None = field(default=None)


class Sent:
    """What was sent: for each tenant, entries by key, in one mapping or several."""

    def __init__(self, entries: Mapping[str, Sequence[Mapping[str, Entry]]]) -> None:
        self._entries = entries

    @property
    def tenants(self) -> list[str]:
        return sorted(self._entries)

    def keys(self, tenant_id: str) -> set[str]:
        return {key for entries in self._entries.get(tenant_id, ()) for key in tuple(entries)}

    def find(self, tenant_id: str, key: str) -> Entry | None:
        for entries in self._entries.get(tenant_id, ()):
            if key in entries:
                return entries[key]
        return None

    def by_another(self, key: str) -> bool:
        return any(key in entries for of in self._entries.values() for entries in of)


Maker: TypeAlias = Callable[[str, int], Draft]
"""Makes a tenant's message with the given number."""


def mixed(tenant_id: str, number: int) -> Draft:
    """Make a JSON message; every third message is bytes that are not text."""
    key = str(uuid.uuid4())
    if number % 3:
        content = {"tenant": tenant_id, "number": number, "note": "ä€" * 40}
        body, content_type = json.dumps(content).encode(), "application/json"
    else:
        body, content_type = f"{tenant_id}-{number}-{key}\x00\xff".encode(), "text/plain"
    return Draft(key=key, message_id=key, body=body, content_type=content_type)


def entry(draft: Draft, target: Target, *, sender: str = "", number: int = 0) -> Entry:
    """Write a message down."""
    return Entry(
        target=draft.target or target,
        content_type=None if isinstance(draft.content_type, bytes) else draft.content_type,
        opaque=isinstance(draft.content_type, bytes),
        sha256=sha256(draft.body),
        meaning=meaning(draft.body),
        fate=draft.fate,
        sender=sender,
        number=number,
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def meaning(document: bytes | str) -> str | None:
    """Digest what a JSON document says, to the last digit; return None if it is not JSON."""
    try:
        content = json.loads(document, parse_float=Decimal, parse_int=Decimal)
        return sha256(_canonical(content).encode())
    except (ValueError, ArithmeticError, RecursionError):
        return None


_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)


def _canonical(content: object) -> str:
    if isinstance(content, dict):
        pairs = (f"{json.dumps(key)}:{_canonical(content[key])}" for key in sorted(content))
        return "{" + ",".join(pairs) + "}"
    if isinstance(content, list):
        return "[" + ",".join(_canonical(one) for one in content) + "]"
    if isinstance(content, Decimal):
        number = content.normalize(_EXACT)
        # `numeric` knows no negative zero.
        return "0" if number.is_zero() else str(number)
    return json.dumps(content)
