"""Password hashes in the database."""

from __future__ import annotations

import pytest

from tenantry.assembly.backends import Stores
from tenantry.broker.password_hashes import PostgresPasswordHashes
from tenantry.broker.port import PasswordHash
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.events import (
    CredentialsRotated,
    TenantCreated,
    TenantProvisioned,
    WorkersResized,
)
from tenantry.journal.port import Metadata, VersionConflictError
from tenantry.messages.port import StoreUnavailableError
from tenantry.projections.tenants import TenantProjection


def test_a_hash_is_pending_until_it_is_confirmed_and_then_replaces_the_one_before(
    database: Database,
) -> None:
    kept = PostgresPasswordHashes(database)
    one, two, three = (PasswordHash(value=value) for value in ("one", "two", "three"))
    assert kept.load("acme") is None
    kept.propose("acme", one)
    assert kept.load("acme") is None
    assert kept.all() == {}
    kept.confirm("acme")
    kept.propose("acme", two)
    kept.propose("other", one)
    assert kept.all() == {"acme": one}
    kept.propose("acme", three)
    kept.confirm("acme")
    kept.confirm("acme")
    assert kept.load("acme") == three
    kept.propose("acme", one)
    kept.remove("acme")
    kept.remove("acme")
    kept.confirm("acme")
    assert kept.load("acme") is None


def test_the_event_that_tells_of_a_password_confirms_it_or_neither_is_there(
    database: Database,
) -> None:
    kept, hashed = PostgresPasswordHashes(database), PasswordHash(value="new")
    stores = Stores.on(database, TenantProjection())
    created = TenantCreated(tenant_id="acme", name="Acme", workers=1, topics=(), partitions=1)
    stream, by = names.journal_stream("acme"), Metadata(actor="test")
    stores.journal.append(stream, [created], expected=0, metadata=by)
    for expected, event in (
        (1, TenantProvisioned(tenant_id="acme")),
        (2, CredentialsRotated(tenant_id="acme")),
    ):
        kept.propose("acme", hashed)
        before = kept.load("acme")
        with pytest.raises(VersionConflictError):
            stores.journal.append(stream, [event], expected=9, metadata=by)
        assert kept.load("acme") == before
        stores.journal.append(stream, [event], expected=expected, metadata=by)
        assert kept.load("acme") == hashed
        hashed = PasswordHash(value="newer")
    kept.propose("acme", PasswordHash(value="newest"))
    resized = WorkersResized(tenant_id="acme", previous=1, workers=2)
    stores.journal.append(stream, [resized], expected=3, metadata=by)
    assert kept.load("acme") == hashed


def test_an_absent_database_is_told_as_such(database: Database) -> None:
    database.close()
    with pytest.raises(StoreUnavailableError):
        PostgresPasswordHashes(database).load("acme")
