"""Password hashes in the database."""

from __future__ import annotations

import pytest

from tenantry.broker.port import PasswordHash
from tenantry.database.credentials import PostgresCredentials
from tenantry.database.pool import Database
from tenantry.messages.port import StoreUnavailableError


def test_a_hash_is_kept_replaced_and_forgotten(database: Database) -> None:
    kept = PostgresCredentials(database)
    assert kept.load("acme") is None
    kept.save("acme", PasswordHash(value="one"))
    kept.save("other", PasswordHash(value="two"))
    assert kept.load("acme") == PasswordHash(value="one")
    kept.save("acme", PasswordHash(value="three"))
    assert kept.load("acme") == PasswordHash(value="three")
    kept.remove("acme")
    kept.remove("acme")
    assert kept.load("acme") is None
    assert kept.load("other") == PasswordHash(value="two")


def test_an_absent_database_is_told_as_such(database: Database) -> None:
    database.close()
    with pytest.raises(StoreUnavailableError):
        PostgresCredentials(database).load("acme")
