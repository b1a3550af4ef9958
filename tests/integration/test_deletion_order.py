"""What is published for a tenant that is being deleted: refused, counted or swept, never left."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from structlog.testing import capture_logs

from tenantry.broker.port import TenantTopology
from tenantry.broker.postgres import users
from tenantry.broker.postgres.rotation import LONGEST_REST, QueueRotation
from tenantry.database.pool import Database
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.services_postgres import in_database

PUBLISH = "SELECT tenantry.publish('default', '1', tenant => %s)"


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "GRACE", 0.05)
    monkeypatch.setattr(users, "ENDING", 0.3)
    monkeypatch.setattr(users, "_GRACE_MS", 50)


def made(broker: Broker) -> TenantTopology:
    tenant = broker.tenant()
    _, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    return tenant


def delete(broker: Broker, tenant: TenantTopology) -> int:
    broker.administration.remove_user(tenant.tenant_id)
    return broker.administration.remove_topology(tenant.tenant_id)


@contextmanager
def shop(database: Database, database_url: str, *tenants: TenantTopology) -> Iterator[str]:
    """Make an application's role that acts for tenants; give its URL."""
    name = f"shop_{secrets.token_hex(6)}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'".encode())
        try:
            for tenant in tenants:
                admin.execute(f'GRANT "{names.username(tenant.tenant_id)}" TO {name}'.encode())
            yield in_database(database.url_for(name, "x"), urlsplit(database_url).path[1:])
        finally:
            admin.execute(f"DROP ROLE {name}".encode())


def lying(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT count(*) FROM tenantry.queued").fetchone()
    return int(row[0]) if row else -1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_who_acts_for_a_tenant_can_not_commit_after_its_deletion(
    broker: Broker, database: Database, database_url: str, level: str
) -> None:
    tenant = made(broker)
    broker.publish(tenant, "default", b"counted")
    with shop(database, database_url, tenant) as url, psycopg.connect(url) as business:
        business.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        business.execute(PUBLISH, [tenant.tenant_id])
        assert delete(broker, tenant) == 1
        with pytest.raises(psycopg.OperationalError):
            business.execute("COMMIT")
        business.close()
        assert lying(database) == 0


def test_what_is_committed_while_the_deletion_waits_is_counted(
    broker: Broker, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = made(broker)
    with shop(database, database_url, tenant) as url, psycopg.connect(url) as business:
        business.execute(PUBLISH, [tenant.tenant_id])
        # It commits as soon as it has been waited for once.
        monkeypatch.setattr(users.time, "sleep", lambda _: business.commit())
        assert delete(broker, tenant) == 1
        assert lying(database) == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            business.execute(PUBLISH, [tenant.tenant_id])
        business.close()


@pytest.mark.usefixtures("impatient")
def test_who_publishes_for_others_is_neither_ended_nor_waited_for(
    broker: Broker, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, other = made(broker), made(broker)

    def refuse(_: float) -> None:
        raise AssertionError("somebody is waited for")

    monkeypatch.setattr(users.time, "sleep", refuse)
    with shop(database, database_url, other) as url, psycopg.connect(url) as business:
        business.execute(PUBLISH, [other.tenant_id])
        assert delete(broker, tenant) == 0
        business.commit()
        business.close()
    assert len(broker.ready(names.queue_name(other.tenant_id))) == 1
    delete(broker, other)


@pytest.mark.usefixtures("impatient")
def test_a_message_of_whoever_could_not_be_ended_is_swept_and_its_segment_runs_empty(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant, other = made(broker), made(broker)
    broker.publish(other, "default", b"stays")
    rotation = QueueRotation(database, full=1)
    # The database's own user: a superuser's session is not ended.
    with psycopg.connect(database_url) as business:
        business.execute(PUBLISH, [tenant.tenant_id])
        assert delete(broker, tenant) == 0
        business.commit()
    assert lying(database) == 2
    with database.connection() as connection:
        assert rotation.sweep(connection) == 1
        assert rotation.sweep(connection) == 0
    rotation.turn()
    assert (ring := rotation.ring()) is not None
    assert (ring.swept, ring.held) == (1, 0)
    assert ring.bytes > 0
    assert len(broker.ready(names.queue_name(other.tenant_id))) == 1
    with database.connection() as connection:
        connection.execute("DELETE FROM tenantry.queued")
    rotation.turn()
    rotation.turn()
    with database.connection() as connection:
        row = connection.execute("SELECT pg_relation_size('tenantry.queued_0')").fetchone()
    assert row == (0,)
    delete(broker, other)


def test_a_segment_moves_on_when_the_session_is_ended_that_kept_it(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant = made(broker)
    rotation = QueueRotation(database, full=1)
    size = "SELECT pg_relation_size('tenantry.queued_0')"
    with shop(database, database_url, tenant) as url, psycopg.connect(url) as business:
        business.execute(PUBLISH, [tenant.tenant_id])
        for _ in range(3):
            rotation.turn()
        with database.connection() as connection:
            assert connection.execute(size).fetchone() != (0,)
            pid = business.info.backend_pid
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            for _ in range(9):
                rotation.turn()
            assert connection.execute(size).fetchone() == (0,)
        business.close()
    delete(broker, tenant)


def test_who_keeps_an_empty_segment_for_long_is_named(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant = made(broker)
    broker.publish(tenant, "default", b"gone")
    rotation = QueueRotation(database, full=1)
    with psycopg.connect(database_url) as holding:
        # What a tenant may do as well: the lock is taken before anybody asks for rights.
        holding.execute("PREPARE held AS DELETE FROM tenantry.queued_0")
        with database.connection() as connection:
            connection.execute("DELETE FROM tenantry.queued")
        with capture_logs() as logs:
            for _ in range(24):
                rotation.turn()
        held = [one for one in logs if one["event"] == "broker.segment_in_use"]
        assert len(held) == 1, logs
        assert f"process {holding.info.backend_pid} of {holding.info.user}" in held[0]["held_by"][0]
        assert (ring := rotation.ring()) is not None
        assert ring.held == 1
    for _ in range(LONGEST_REST + 1):
        rotation.turn()
    assert (ring := rotation.ring()) is not None
    assert ring.held == 0
    delete(broker, tenant)


def test_a_role_is_locked_out_before_its_sessions_are_ended(
    broker: Broker, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = broker.tenant()
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    close = users.close_exchange

    def try_to_come_back(*given: object) -> None:
        with pytest.raises(psycopg.OperationalError, match=r"not permitted|password"):
            psycopg.connect(credentials.postgres_url)
        close(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(users, "close_exchange", try_to_come_back)
    delete(broker, tenant)
