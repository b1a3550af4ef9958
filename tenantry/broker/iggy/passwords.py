"""What the database knows of passwords that an Iggy server takes, and never tells again.

Iggy is given a password in clear, keeps a hash of its own, and shows none. So a password is known
to hold as long as the user is the one that was made with it: each has a number and a time at which
it was made.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from tenantry.broker.port import BrokerError, BrokerUnavailableError, PasswordHash
from tenantry.database.failures import PortErrors
from tenantry.database.pool import Database
from tenantry.domain.names import UserKind
from tenantry.sql import queries

KEPT: Final = 60.0
"""Seconds a password is remembered that was made and not set yet."""

PREFIX: Final = "IGGY-PBKDF2-SHA256$"
"""How a hash begins that is known here, and no other broker's."""

_ROUNDS: Final = 4096


class Made(NamedTuple):
    """Which user of a server, whatever its name: its number, and when it was made."""

    number: int
    at: int


def hashed(password: str) -> PasswordHash:
    """Make the hash by which a password is known; no server is given it."""
    salt = secrets.token_bytes(16)
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS)
    parts = (base64.b64encode(part).decode() for part in (salt, derived))
    return PasswordHash(value=f"{PREFIX}{_ROUNDS}:{'$'.join(parts)}")


class Passwords:
    """Which user was made with which password. Callable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._sql = queries("iggy")
        self._guard = threading.Lock()
        self._new: dict[str, tuple[str, float]] = {}

    def generate(self) -> tuple[str, PasswordHash]:
        """Make a password; `take` gives it once more to who has to set it."""
        password = secrets.token_urlsafe(32)
        value = hashed(password)
        with self._guard:
            self._forget_old()
            self._new[value.value] = (password, time.monotonic())
        return password, value

    def take(self, value: PasswordHash) -> str | None:
        """Give the password of a hash that was made a moment ago; None afterwards."""
        with self._guard:
            self._forget_old()
            found = self._new.get(value.value)
        return None if found is None else found[0]

    def forget(self, value: PasswordHash) -> None:
        """Forget a password that has been set."""
        with self._guard:
            self._new.pop(value.value, None)

    def record(self, tenant_id: str, user: Made, value: PasswordHash) -> None:
        """Note with which password a user was made."""
        parameters = {**user._asdict(), "tenant": tenant_id, "hash": value.value}
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["record_user"], parameters)

    def known(self) -> Mapping[Made, str]:
        """Give the hashes of all users that were made here."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["known_users"]).fetchall()
        return {Made(number, at): value for number, at, value in rows}

    def of(self, tenant_id: str) -> Mapping[Made, str]:
        """Give the hashes of a tenant's users."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["known_users_of"], {"tenant": tenant_id}).fetchall()
        return {Made(number, at): value for number, at, value in rows}

    def confirmed(self, tenant_id: str, kind: UserKind) -> str | None:
        """Give the confirmed hash of a tenant's user: of the password that was shown last."""
        with self._errors, self._database.connection() as connection:
            query = self._sql[f"confirmed_{kind}_hash"]
            row = connection.execute(query, {"tenant": tenant_id}).fetchone()
        return None if row is None else row[0]

    def remove(self, tenant_id: str, *, but: tuple[Made, ...] = ()) -> None:
        """Forget a tenant's users, but those that are still there."""
        kept = [one.number for one in but]
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["forget_users"], {"tenant": tenant_id, "kept": kept})

    def _forget_old(self) -> None:
        since = time.monotonic() - KEPT
        self._new = {one: entry for one, entry in self._new.items() if entry[1] > since}
