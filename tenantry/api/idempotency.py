"""`Idempotency-Key`: a repeated call takes effect once."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, LiteralString, Protocol, TypeAlias
from uuid import UUID, uuid5

from fastapi import Header

from tenantry.database.failures import PortErrors
from tenantry.http.problems import Problem
from tenantry.messages.port import MessageStoreError, StoreUnavailableError

if TYPE_CHECKING:
    from tenantry.database.pool import Database

_NAMESPACE: Final = UUID("5d3f6c1e-0f6b-5b0e-9b55-6d2f1c9a7e10")

HEADER: Final = "Idempotency-Key"

Key: TypeAlias = Annotated[
    str | None,
    Header(
        alias=HEADER,
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="Any text of your own, a new one for each thing to be done: 1 to 255 visible "
        "ASCII characters. The same call with the same key and body, made again within a day, has "
        "its effect once; with another body it is a 422.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

REPLAYED: Final[dict[str, Any]] = {
    "Idempotency-Replayed": {
        "description": "`true` where an earlier call with this key has done it.",
        "schema": {"type": "string"},
    }
}
"""What the OpenAPI document says of the header of an answer."""


class IdempotencyKeys(Protocol):
    """Remembers for a day what each key was first used for. Callable from any thread."""

    def claim(self, owner: bytes, key: bytes, fingerprint: bytes) -> bool:
        """Store a key with its call's fingerprint; False if it is stored with another one.

        An `owner`'s keys never push out another owner's. Durable when this returns. Raises
        `StoreUnavailableError`.
        """


class Once:
    """A call with an idempotency key; it derives the ids of what the call makes.

    The ids are equal for the same call, key and body, and for no other.
    """

    def __init__(self, call: str, key: str, body: bytes) -> None:
        self._owner = hashlib.sha256(call.encode()).digest()
        self._key = hashlib.sha256(f"{call}\n{key}".encode()).digest()
        self._fingerprint = hashlib.sha256(body).digest()
        both = hashlib.sha256(self._key + self._fingerprint).hexdigest()
        self.cause = f"idempotency-key:{both}"

    def claim(self, keys: IdempotencyKeys) -> None:
        """Claim the key for this call; 422 if another call has used it. Blocks."""
        if not keys.claim(self._owner, self._key, self._fingerprint):
            raise Problem(
                422,
                "the idempotency key has been used with another body; take a new one",
                code="idempotency-key-reused",
                title="Key used before",
            )

    def id(self, number: int = 0) -> str:
        """Derive an id, by the number of the object among those that the call makes."""
        return str(uuid5(_NAMESPACE, f"{self.cause}/{number}"))


KEEP: Final = timedelta(hours=24)
MOST: Final = 100_000
"""The most keys of an owner, some 25 MB; its oldest ones are removed early."""

_CLAIM: Final[LiteralString] = "SELECT tenantry.claim_idempotency_key(%s, %s, %s, %s, %s)"


class PostgresIdempotencyKeys:
    """Idempotency keys (`tenantry.api.idempotency.IdempotencyKeys`) in a bounded table."""

    def __init__(self, database: Database, *, keep: timedelta = KEEP, most: int = MOST) -> None:
        self._database = database
        self._errors = PortErrors(StoreUnavailableError, MessageStoreError, where=database.where)
        self._keep = keep
        self._most = most

    def claim(self, owner: bytes, key: bytes, fingerprint: bytes) -> bool:
        """See `IdempotencyKeys.claim`."""
        wanted = (owner, key, fingerprint, self._keep, self._most)
        with self._errors:  # safe to repeat: claiming twice is the same as once
            row = self._database.read(lambda one: one.execute(_CLAIM, wanted).fetchone())
        return row is None or row[0] is None or bytes(row[0]) == fingerprint
