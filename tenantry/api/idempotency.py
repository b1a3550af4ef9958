"""`Idempotency-Key`: a call that is made again has its effect once."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Annotated, Any, Final, Protocol, TypeAlias
from uuid import UUID, uuid5

from fastapi import Header

from tenantry.http.problems import Problem

_NAMESPACE: Final = UUID("5d3f6c1e-0f6b-5b0e-9b55-6d2f1c9a7e10")
_MOST_IN_MEMORY: Final = 10_000

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
    """Remembers what each key was first used for, for a day. Callable from any thread."""

    def claim(self, key: bytes, fingerprint: bytes) -> bool:
        """Keep a key with its call's fingerprint; tell whether it is not kept with another.

        Kept when this returns, over a restart too. Raises `StoreUnavailableError`.
        """


class MemoryIdempotencyKeys:
    """Keys that are forgotten with the process, and the oldest of very many before."""

    def __init__(self, most: int = _MOST_IN_MEMORY) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def claim(self, key: bytes, fingerprint: bytes) -> bool:
        """See `IdempotencyKeys.claim`."""
        with self._lock:
            kept = self._kept.setdefault(key, fingerprint)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return kept == fingerprint


class Once:
    """A call with an idempotency key: what it may be called in the journal, and what it makes.

    Ids it gives are the same for the same call, key and body, and for no other.
    """

    def __init__(self, call: str, key: str, body: bytes) -> None:
        self._key = hashlib.sha256(f"{call}\n{key}".encode()).digest()
        self._fingerprint = hashlib.sha256(body).digest()
        both = hashlib.sha256(self._key + self._fingerprint).hexdigest()
        self.cause = f"idempotency-key:{both}"

    def claim(self, keys: IdempotencyKeys) -> None:
        """Take the key for this call, or answer 422: it has served for another. Blocks."""
        if not keys.claim(self._key, self._fingerprint):
            raise Problem(
                422,
                "the idempotency key has been used with another body; take a new one",
                code="idempotency-key-reused",
                title="Key used before",
            )

    def id(self, number: int = 0) -> str:
        """Give the id of the call's thing with this number."""
        return str(uuid5(_NAMESPACE, f"{self.cause}/{number}"))
