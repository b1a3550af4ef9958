"""What the database records of passwords on an Iggy server, which never shows them again.

Iggy is given a password in clear, keeps a hash of its own, and shows none. So a password is known
to hold as long as the user is still the one made with it: each user has a number and a creation
time.
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
"""Seconds a generated password is remembered before it is set."""

PREFIX: Final = "IGGY-PBKDF2-SHA256$"
"""The prefix of the hashes used here, unlike another broker's."""

_ROUNDS: Final = 4096


class Made(NamedTuple):
    """Identifies a user of a server, whatever its name: by its number and creation time."""

    number: int
    at: int


def hashed(password: str) -> PasswordHash:
    """Hash a password for our own records; no server gets the hash."""
    salt = secrets.token_bytes(16)
    derived = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS)
    parts = (base64.b64encode(part).decode() for part in (salt, derived))
    return PasswordHash(value=f"{PREFIX}{_ROUNDS}:{'$'.join(parts)}")


class Passwords:
    """Records which user was made with which password. Callable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._sql = queries("iggy")
        self._guard = threading.Lock()
        self._new: dict[str, tuple[str, float]] = {}

    def generate(self) -> tuple[str, PasswordHash]:
        """Generate a password; for a while, `take` returns it again by its hash."""
        password = secrets.token_urlsafe(32)
        value = hashed(password)
        with self._guard:
            self._forget_old()
            self._new[value.value] = (password, time.monotonic())
        return password, value

    def take(self, value: PasswordHash) -> str | None:
        """Return the password of a hash generated a moment ago; None afterwards."""
        with self._guard:
            self._forget_old()
            found = self._new.get(value.value)
        return None if found is None else found[0]

    def forget(self, value: PasswordHash) -> None:
        """Forget a password that has been set."""
        with self._guard:
            self._new.pop(value.value, None)

    def record(self, tenant_id: str, user: Made, value: PasswordHash) -> None:
        """Record the password with which a user was made, by its hash."""
        parameters = {**user._asdict(), "tenant": tenant_id, "hash": value.value}
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["record_user"], parameters)

    def known(self) -> Mapping[Made, str]:
        """Return the hashes of all users made by this installation."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["known_users"]).fetchall()
        return {Made(number, at): value for number, at, value in rows}

    def of(self, tenant_id: str) -> Mapping[Made, str]:
        """Return the hashes of a tenant's users."""
        with self._errors, self._database.connection() as connection:
            rows = connection.execute(self._sql["known_users_of"], {"tenant": tenant_id}).fetchall()
        return {Made(number, at): value for number, at, value in rows}

    def confirmed(self, tenant_id: str, kind: UserKind) -> str | None:
        """Return the confirmed hash of a tenant's user: of the password that was shown last."""
        with self._errors, self._database.connection() as connection:
            query = self._sql[f"confirmed_{kind}_hash"]
            row = connection.execute(query, {"tenant": tenant_id}).fetchone()
        return None if row is None else row[0]

    def remove(self, tenant_id: str, *, but: tuple[Made, ...] = ()) -> None:
        """Forget a tenant's users, except those that still exist."""
        kept = [one.number for one in but]
        with self._errors, self._database.connection() as connection:
            connection.execute(self._sql["forget_users"], {"tenant": tenant_id, "kept": kept})

    def _forget_old(self) -> None:
        since = time.monotonic() - KEPT
        self._new = {one: entry for one, entry in self._new.items() if entry[1] > since}
