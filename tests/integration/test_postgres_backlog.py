"""The embedded broker's count of what waits: right whoever changes it, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tenantry.broker.port import BacklogFullError, Credentials, TenantTopology
from tenantry.broker.postgres.users import MOST_CONNECTIONS
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.limits import NO_LIMITS, Limits
from tenantry.isolation.sessions import TenantsSessions
from tests import brokers
from tests.brokers import Broker

PUBLISH = "SELECT tenantry.publish('default', '1')"
TAKE = """
SELECT tenantry.take(%s, array_agg('default'::text), array_agg(0), array_agg(m.seq))
FROM tenantry.queued AS m JOIN tenantry.queues AS q ON q.id = m.queue WHERE q.tenant_id = %s
"""


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


def limited(broker: Broker, **limits: int) -> tuple[TenantTopology, Credentials]:
    tenant = broker.tenant()
    broker.administration.claim(tenant.tenant_id)
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    broker.administration.ensure_limits(tenant, Limits(**limits))
    return tenant, credentials


def session(credentials: Credentials) -> psycopg.Connection:
    return psycopg.connect(credentials.postgres_url, autocommit=True)


def counted(database: Database, tenant: TenantTopology) -> Sequence[tuple[int, int]]:
    """Give what is counted and what there is: messages and bytes."""
    with database.connection() as connection:
        return connection.execute(
            "SELECT coalesce(sum(messages), 0)::bigint, coalesce(sum(bytes), 0)::bigint"
            " FROM tenantry.backlog_parts WHERE tenant_id = %(tenant)s UNION ALL "
            "SELECT count(*), coalesce(sum(octet_length(m.body)), 0)"
            " FROM tenantry.queued AS m JOIN tenantry.queues AS q ON q.id = m.queue"
            " WHERE q.tenant_id = %(tenant)s",
            {"tenant": tenant.tenant_id},
        ).fetchall()


def test_a_role_that_publishes_too_much_is_told_what_to_do(broker: Broker) -> None:
    _, credentials = limited(broker, backlog_messages=2)
    with session(credentials) as tenants:
        tenants.execute(PUBLISH)
        tenants.execute(PUBLISH)
        with pytest.raises(psycopg.Error) as refused:
            tenants.execute(PUBLISH)
        assert refused.value.sqlstate == "TN003"
        assert "2 messages wait, of at most 2" in (refused.value.diag.message_primary or "")
        assert "backlog.messages" in (refused.value.diag.message_hint or "")


def test_an_open_transaction_of_the_tenant_holds_up_neither_publishing_nor_taking(
    broker: Broker, database: Database
) -> None:
    tenant, credentials = limited(broker, backlog_messages=100)
    with session(credentials) as held, session(credentials) as other:
        other.execute(PUBLISH)
        held.execute("BEGIN")
        held.execute(PUBLISH)
        other.execute("SET statement_timeout = '5s'")
        for _ in range(3):
            other.execute(PUBLISH)
        broker.publish(tenant, "default", b"over HTTP")
        with database.connection() as connection:
            connection.execute("SET LOCAL statement_timeout = '5s'")
            connection.execute(TAKE, [tenant.tenant_id] * 2)
        held.execute("ROLLBACK")
        with held.transaction():
            held.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            held.execute(PUBLISH)
            other.execute(PUBLISH)
            held.execute(PUBLISH)
    book, there = counted(database, tenant)
    assert book == there == (3, 3)


def test_the_count_is_right_after_many_have_changed_it_at_once(
    broker: Broker, database: Database
) -> None:
    tenant, credentials = limited(broker, backlog_messages=10_000, backlog_bytes=10**9)

    def publish(number: int) -> None:
        with session(credentials) as tenants:
            for turn in range(15):
                if number % 2:
                    tenants.execute(PUBLISH)
                    continue
                tenants.execute("BEGIN")
                tenants.execute(PUBLISH)
                tenants.execute("ROLLBACK" if turn % 3 else "COMMIT")

    def take(_number: int) -> None:
        for _ in range(10):
            with database.connection() as connection:
                connection.execute(TAKE, [tenant.tenant_id] * 2)

    with ThreadPoolExecutor(6) as threads:
        work = [threads.submit(publish, number) for number in range(4)]
        work += [threads.submit(take, number) for number in range(2)]
        for one in work:
            one.result()
    book, there = counted(database, tenant)
    assert book == there
    broker.administration.survey()
    assert counted(database, tenant)[0] == there


def test_a_count_that_went_wrong_is_made_right_and_one_row_with_each_look(
    broker: Broker, database: Database
) -> None:
    tenant, _ = limited(broker, backlog_messages=5)
    broker.publish(tenant, "default", b"1", b"2", b"3")
    with database.connection() as connection:
        connection.execute("DELETE FROM tenantry.queued WHERE body = '1'")
        connection.execute(
            "INSERT INTO tenantry.backlog_parts (tenant_id, messages, bytes) VALUES (%s, 7, 9)",
            [tenant.tenant_id],
        )
    with pytest.raises(BacklogFullError):
        broker.publish(tenant, "default", b"4")
    broker.administration.survey()
    assert counted(database, tenant)[0] == (2, 2)
    with database.connection() as connection:
        (rows,) = connection.execute("SELECT count(*) FROM tenantry.backlog_parts").fetchone() or ()
    assert rows == 1
    broker.publish(tenant, "default", b"4")


def test_messages_that_lie_there_when_a_limit_is_set_count(broker: Broker) -> None:
    tenant = broker.tenant()
    broker.publish(tenant, "default", b"1", b"2")
    broker.administration.ensure_limits(tenant, Limits(backlog_messages=3))
    with pytest.raises(BacklogFullError):
        broker.publish(tenant, "default", b"3", b"4")
    broker.publish(tenant, "default", b"3")
    broker.administration.ensure_limits(tenant, NO_LIMITS)
    broker.publish(tenant, "default", b"4", b"5")


def test_connections_beyond_the_limit_are_refused_and_mending_keeps_it(
    broker: Broker, database: Database
) -> None:
    tenant, credentials = limited(broker, connections=2)
    with (
        session(credentials),
        session(credentials),
        pytest.raises(psycopg.OperationalError, match="too many connections"),
    ):
        session(credentials)

    def limit() -> int:
        with database.connection() as connection:
            row = connection.execute(
                "SELECT rolconnlimit FROM pg_roles WHERE rolname = %s",
                [names.username(tenant.tenant_id)],
            ).fetchone()
        return -1 if row is None else int(row[0])

    sessions = TenantsSessions(database)
    sessions.mend()
    assert limit() == 2
    with database.connection() as connection:
        name = names.username(tenant.tenant_id)
        connection.execute(f'ALTER ROLE "{name}" CONNECTION LIMIT 30'.encode())
    sessions.mend()
    assert limit() == 2
    broker.administration.ensure_limits(tenant, NO_LIMITS)
    assert limit() == MOST_CONNECTIONS
