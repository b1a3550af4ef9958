"""What is the embedded broker's own: transactions, leases, the ring, rights."""

from __future__ import annotations

import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from math import inf
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.broker import drift
from tenantry.broker.port import BrokerError, NotOursError, TenantTopology
from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.broker.postgres.consuming import FEW, PostgresConsuming
from tenantry.broker.postgres.reading import QueueReading
from tenantry.broker.postgres.rotation import QueueRotation
from tenantry.broker.postgres.session import QueueSession
from tenantry.broker.postgres.subscription import Row
from tenantry.broker.survey import DriftKind
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.domain import names
from tenantry.domain.names import UserKind
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.nodes.joining import scope_of
from tenantry.nodes.postgres import PostgresNodes
from tenantry.terms.port import Holder
from tenantry.terms.postgres import PostgresTerms
from tests import brokers
from tests.brokers import ENQUEUE, Broker, RecordingSink, bodies
from tests.depth import examples
from tests.services_postgres import in_database
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def broker(database: Database) -> Iterator[Broker]:
    with brokers.postgres(database) as running:
        yield running


subscribed = partial(brokers.subscribed, prefetch=100)


def put(connection: psycopg.Connection, tenant: TenantTopology, body: bytes) -> None:
    connection.execute(ENQUEUE, [names.exchange_name(tenant.tenant_id), body.decode(), body])


def test_what_commits_late_is_delivered_though_a_later_number_was(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = subscribed(broker, tenant)
    with psycopg.connect(database_url) as slow, psycopg.connect(database_url) as quick:
        put(slow, tenant, b"slow")
        for number in range(5):
            put(quick, tenant, b"quick %d" % number)
            quick.commit()
            sink.received(number + 1)
        slow.commit()
    assert bodies(sink.received(6))[5] == b"slow"


def test_when_a_transaction_ends_that_was_open_for_long_only_queues_with_messages_are_fetched_from(
    broker: Broker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [broker.tenant() for _ in range(3 * FEW)]
    sinks = [subscribed(broker, tenant) for tenant in tenants]
    for sink in sinks:
        sink.heard("consuming")
    reader = broker.consuming
    assert isinstance(reader, PostgresConsuming)
    fetched: list[str] = []
    fetch = QueueSession.fetch

    def noting(
        session: QueueSession, readings: Sequence[QueueReading], *arguments: Any, **options: Any
    ) -> list[tuple[QueueReading, list[Row]]]:
        fetched.extend(one.spec.name for one in readings)
        return fetch(session, readings, *arguments, **options)

    with psycopg.connect(database_url) as slow:
        put(slow, tenants[-1], b"slow")
        eventually(lambda: reader._stragglers, what="a transaction that is not waited for")
        eventually(lambda: reader._reader_wakeup.pause(0) == inf, what="a reader that sleeps")
        monkeypatch.setattr(QueueSession, "fetch", noting)
        slow.commit()
    assert bodies(sinks[-1].received(1)) == [b"slow"]
    # When it is time to look at few, these are fetched from, whoever has ended what.
    assert len(set(fetched) - set(tenants[-1].queue_names)) <= FEW
    broker.publish(tenants[0], "default", b"quick")
    assert bodies(sinks[0].received(1)) == [b"quick"]


def test_what_commits_late_is_given_out_though_no_snapshot_told_that_it_was_open(
    broker: Broker, database_url: str
) -> None:
    # A snapshot ends with the last transaction that has ended: the younger one is beyond it.
    tenant = broker.tenant()
    with (
        psycopg.connect(database_url) as younger,
        psycopg.connect(database_url) as elder,
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        reader = QueueSession(connection)
        reader.begin()
        (reading,) = reader.acquire(tenant.queues(), 100).readings
        given: list[tuple[int, bytes]] = []

        def fetch() -> None:
            for _, rows in reader.fetch([reading], [seq for seq, _ in given]):
                given.extend((row[1], row[6]) for row in rows)

        elder.execute("SELECT pg_current_xact_id()")
        put(younger, tenant, b"late")
        for number in range(4):
            put(elder, tenant, b"%d" % number)
            elder.commit()
            fetch()
        younger.commit()
        fetch()
        assert [body for _, body in given] == [b"0", b"1", b"2", b"3", b"late"]


def test_a_message_is_there_with_the_producers_own_rows_or_not_at_all(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    sink = subscribed(broker, tenant)
    with psycopg.connect(database_url) as business:
        business.execute("CREATE TABLE public.orders (id int)")
        business.commit()
        for number, good in enumerate([True, False, True]):
            business.execute("INSERT INTO public.orders VALUES (%s)", [number])
            put(business, tenant, b"order %d" % number)
            business.commit() if good else business.rollback()
        orders = business.execute("SELECT id FROM public.orders ORDER BY id").fetchall()
    broker.publish(tenant, "default", b"behind")
    assert bodies(sink.received(3)) == [b"order 0", b"order 2", b"behind"]
    assert orders == [(0,), (2,)]


def test_the_queues_of_a_reader_that_was_killed_are_free_at_once(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    broker.publish(tenant, "default", b"1", b"2")
    with psycopg.connect(database_url, autocommit=True) as dead:
        link = QueueSession(dead)
        link.begin()
        assert link.acquire(tenant.queues(), 100).readings
    again = subscribed(broker, tenant).received(2)
    assert bodies(again) == [b"1", b"2"]
    assert all(one.redelivered for one in again)


def test_subscriptions_that_are_closed_together_release_their_queues_with_one_statement(
    broker: Broker, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = [broker.tenant() for _ in range(5)]
    sinks = [RecordingSink() for _ in tenants]
    reader = broker.consuming
    assert isinstance(reader, PostgresConsuming)
    subscriptions = [
        reader.subscribe(tenant.queues(), prefetch=100, sink=sink)
        for tenant, sink in zip(tenants, sinks, strict=True)
    ]
    for sink in sinks:
        sink.heard("consuming")
    released: list[int] = []
    release = QueueSession.release

    def noting(session: QueueSession, readings: Sequence[QueueReading]) -> None:
        released.append(len(readings))
        release(session, readings)

    monkeypatch.setattr(QueueSession, "release", noting)
    closed = threading.Event()
    reader.call(partial(closed.wait, DEADLINE))
    for subscription in subscriptions:
        subscription.close()
    closed.set()
    with brokers.postgres(database) as other:
        for tenant in tenants:
            subscribed(other, tenant).heard("consuming")
    assert released[0] == sum(len(tenant.queues()) for tenant in tenants)


def test_a_frozen_reader_loses_its_queues_when_its_lease_runs_out_and_reads_no_more(
    broker: Broker, database_url: str
) -> None:
    tenant = broker.tenant()
    broker.publish(tenant, "default", b"1")
    with psycopg.connect(database_url, autocommit=True) as connection:
        frozen = QueueSession(connection)
        frozen.begin()
        (reading,) = frozen.acquire(tenant.queues(), 100).readings
        sink = subscribed(broker, tenant)
        assert not sink.got
        connection.execute("UPDATE tenantry.consumers SET expires_at = now() - interval '1 s'")
        assert bodies(sink.received(1)) == [b"1"]
        assert frozen.fetch([reading], ()) == []
        assert reading.id not in frozen.renew()


def test_a_queue_has_a_consumer_while_its_reader_may_renew_a_lease_that_has_lapsed(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant = broker.tenant()
    administration = PostgresAdministration(database, installation=brokers.INSTALLATION)
    administration.check()
    queue = names.queue_name(tenant.tenant_id)
    with psycopg.connect(database_url, autocommit=True) as connection:
        late = QueueSession(connection)
        late.begin()
        assert late.acquire(tenant.queues(), 100).readings
        connection.execute("UPDATE tenantry.consumers SET expires_at = now() - interval '1 s'")
        assert queue in administration.survey().consumed
        assert late.renew()
        connection.execute("UPDATE tenantry.consumers SET expires_at = now() - interval '1 s'")
    eventually(lambda: queue not in administration.survey().consumed)


def test_a_message_that_two_readers_have_is_stored_once_even_without_an_id(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    store = PostgresMessageStore(database)
    store.create_partition(tenant.tenant_id)
    with database.connection() as connection:
        put_nameless = ENQUEUE.replace("ARRAY[%s], ARRAY[%s", "ARRAY[NULL], ARRAY[%s")
        stream = names.exchange_name(tenant.tenant_id)
        for body in (b"a", b"b"):
            connection.execute(put_nameless, [stream, body])
    sink = subscribed(broker, tenant)
    batch: list[Incoming] = [one.message for one in sink.received(2)]
    first = store.store(tenant.tenant_id, batch[:1])
    assert (first.stored, first.duplicates) == (1, 0)
    second = store.store(tenant.tenant_id, batch)
    assert (second.stored, second.duplicates) == (1, 1)
    rows = store.page(tenant.tenant_id)
    assert [row.body for row in rows] == [b"a", b"b"]
    assert broker.ready(names.queue_name(tenant.tenant_id)) == []


def test_a_message_of_another_tenant_can_not_be_taken(broker: Broker, database: Database) -> None:
    ours, theirs = broker.tenant(), broker.tenant()
    broker.publish(theirs, "default", b"1")
    with database.connection() as connection:
        row = connection.execute("SELECT seq FROM tenantry.queued").fetchone()
        assert row is not None
        query = "SELECT tenantry.take(%s, ARRAY['default'], ARRAY[0], %s)"
        taken = connection.execute(query, [ours.tenant_id, [row[0]]]).fetchone()
    assert taken == ([],)
    assert broker.ready(names.queue_name(theirs.tenant_id)) == [b"1"]


def test_the_ring_stays_small_though_a_transaction_is_open_all_the_time(
    broker: Broker, database: Database, database_url: str
) -> None:
    tenant = broker.tenant()
    rotation = QueueRotation(database, full=256 * 1024)
    body = b"x" * 400
    largest = 0
    with psycopg.connect(database_url) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM tenantry.queues")
        with psycopg.connect(database_url, autocommit=True) as connection:
            for _ in range(40):
                connection.execute(
                    "SELECT tenantry.enqueue(%s, array_fill('default'::text, ARRAY[500]),"
                    " array_fill(NULL::text, ARRAY[500]), array_fill(%s::bytea, ARRAY[500]),"
                    " array_fill(NULL::text, ARRAY[500]), array_fill(NULL::jsonb, ARRAY[500]),"
                    " array_fill(0::bigint, ARRAY[500]))",
                    [names.exchange_name(tenant.tenant_id), body],
                )
                connection.execute("DELETE FROM tenantry.queued")
                rotation.turn()
                row = connection.execute(
                    "SELECT sum(pg_relation_size(format('tenantry.queued_%s', n)::regclass))"
                    " FROM generate_series(0, 3) AS n"
                ).fetchone()
                assert row is not None
                largest = max(largest, int(row[0]))
    # 40 times 500 messages are 10 MB; what is never truncated would be all there.
    assert largest < 2 * 1024 * 1024


def test_a_segment_with_a_message_that_waits_is_not_truncated(
    broker: Broker, database: Database
) -> None:
    tenant = broker.tenant()
    broker.publish(tenant, "default", b"waits")
    rotation = QueueRotation(database, full=1)
    for number in range(8):
        rotation.turn()
        broker.publish(tenant, "default", b"%d" % number)
    expected = [b"waits", *(b"%d" % number for number in range(8))]
    assert bodies(subscribed(broker, tenant).received(9)) == expected


@settings(
    max_examples=examples(15, 60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_a_keys_checksum_is_zlibs(database: Database, key: str) -> None:
    with database.connection() as connection:
        row = connection.execute("SELECT tenantry.crc32(%s)", [key]).fetchone()
    assert row == (zlib.crc32(key.encode()),)


@pytest.fixture
def tenant_session(broker: Broker, database_url: str) -> Iterator[psycopg.Connection]:
    """A session of a tenant's own role; another tenant has a message."""
    tenant, other = broker.tenant("events", partitions=3), broker.tenant()
    broker.publish(other, "default", b"theirs")
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    with psycopg.connect(credentials.postgres_url, autocommit=True) as session:
        session.execute("SELECT set_config('test.other', %s, false)", [other.tenant_id])
        yield session
    broker.administration.remove_user(tenant.tenant_id)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT tenantry.publish('default', '1', tenant => current_setting('test.other'))",
        "SELECT tenantry.publish('default', '1', tenant => 'nobody')",
        "SELECT * FROM tenantry.look('tenant_' || current_setting('test.other') || '_queue')",
        "SELECT * FROM tenantry.look('tenant_nobody_queue')",
        "SELECT * FROM tenantry.queued",
        "DELETE FROM tenantry.queued_0",
        "SELECT * FROM tenantry.rejected",
        "SELECT * FROM public.messages",
        "UPDATE tenantry.queues SET consumer = 1",
        "SELECT tenantry.acquire_queues(1, ARRAY[]::text[])",
        "SELECT nextval('tenantry.queued_seq')",
        "SET ROLE postgres",
    ],
)
def test_a_tenants_role_reaches_nothing_but_its_own(
    tenant_session: psycopg.Connection, statement: str
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        tenant_session.execute(statement)


def test_a_tenant_publishes_and_looks_by_sql(
    tenant_session: psycopg.Connection, broker: Broker
) -> None:
    publish = "SELECT tenantry.publish('events', '{\"n\": 1}', key => %s, id => %s)"
    for number in range(6):
        row = tenant_session.execute(publish, [f"key {number}", f"id {number}"]).fetchone()
        assert row == (f"id {number}",)
    tenant_id = str(tenant_session.info.user).removeprefix("tenant_").removesuffix("_producer")
    for partition in range(3):
        queue = names.partition_queue_name(tenant_id, "events", partition)
        found = tenant_session.execute("SELECT id FROM tenantry.look(%s)", [queue]).fetchall()
        expected = [f"id {n}" for n in range(6) if zlib.crc32(b"key %d" % n) % 3 == partition]
        assert [row[0] for row in found] == expected
    with pytest.raises(psycopg.errors.UndefinedObject, match="takes the key nothing"):
        tenant_session.execute("SELECT tenantry.publish('nothing', '1')")
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        tenant_session.execute("SELECT tenantry.publish('events', NULL)")


@pytest.mark.parametrize(
    "lists",
    [
        "ARRAY['default'], NULL, ARRAY['1', '2']::bytea[], NULL, NULL, NULL",
        "NULL, NULL, ARRAY['1']::bytea[], NULL, NULL, NULL",
        "ARRAY['default', 'default'], NULL, ARRAY['1']::bytea[], NULL, NULL, NULL",
        "ARRAY['default'], ARRAY['a', 'b'], ARRAY['1']::bytea[], NULL, NULL, NULL",
    ],
)
def test_no_message_of_a_list_goes_nowhere_without_a_word(
    tenant_session: psycopg.Connection, lists: str
) -> None:
    with pytest.raises(psycopg.errors.ArraySubscriptError, match="keys and"):
        tenant_session.execute(f"SELECT tenantry.publish_many({lists})".encode())
    tenant_session.execute("SELECT tenantry.publish_many(NULL, NULL, NULL, NULL, NULL, NULL)")


def test_a_commit_that_confirms_a_message_waits_for_the_disk_whatever_the_session_has_set(
    tenant_session: psycopg.Connection,
) -> None:
    tenant_session.autocommit = True
    tenant_session.execute("SET synchronous_commit = off")
    with tenant_session.transaction():
        tenant_session.execute("SAVEPOINT before")
        tenant_session.execute("SELECT tenantry.publish('events', '1')")
        tenant_session.execute("RELEASE before")
        assert tenant_session.execute("SHOW synchronous_commit").fetchone() == ("on",)
    # What else the session does is its own affair.
    assert tenant_session.execute("SHOW synchronous_commit").fetchone() == ("off",)


def test_a_database_user_that_may_make_no_roles_is_told(
    database: Database, database_url: str
) -> None:
    name = f"limited_{urlsplit(database_url).path[-8:]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x' IN ROLE pg_read_all_data".encode())
        try:
            url = database.url_for(name, "x")
            limited = Database(in_database(url, urlsplit(database_url).path[1:]))
            limited.open()
            try:
                with pytest.raises(BrokerError, match="CREATEROLE, or set rabbitmq"):
                    PostgresAdministration(limited, installation="test").check()
            finally:
                limited.close()
        finally:
            admin.execute(f"DROP ROLE {name}".encode())


def test_a_tenant_that_claims_a_nodes_term_holds_nothing_that_a_takeover_waits_for(
    broker: Broker, database: Database
) -> None:
    slot = PostgresNodes(database).open("a")
    terms = PostgresTerms(database, scope_of("a"), slot=slot)
    taken = terms.take(terms.look(), Holder(instance="a", host="here", pid=1))
    assert taken is not None
    tenant = broker.tenant()
    credentials, hashed = broker.administration.new_credentials(tenant.tenant_id)
    broker.administration.ensure_user(tenant.tenant_id, hashed)
    fences = (
        "SELECT l.relation::regclass::text FROM pg_locks AS l"
        " JOIN pg_class AS c ON c.oid = l.relation"
        " WHERE c.relnamespace = 'tenantry_fence'::regnamespace AND l.pid = %s"
    )
    with psycopg.connect(credentials.postgres_url) as session:
        for claim in (terms.claim(taken.number), "node:b/9/9", "daemon/0"):
            session.execute("SELECT set_config('tenantry.term', %s, false)", [claim])
            session.execute("SELECT tenantry.publish('default', '1')")
            with database.connection() as connection:
                held = connection.execute(fences, [session.info.backend_pid]).fetchall()
            assert held == []
            session.commit()


def test_a_role_of_another_installation_on_the_same_server_is_refused_and_left_alone(
    database: Database, empty_database_url: str
) -> None:
    """Two databases of one server, each with the embedded broker and a tenant of the same id."""
    tenant_id = f"t{uuid.uuid4().hex[:12]}"
    name = names.username(tenant_id)
    migrate(empty_database_url)
    other = Database(empty_database_url)
    other.open()
    ours = PostgresAdministration(database, installation="production")
    theirs = PostgresAdministration(other, installation="staging")
    try:
        ours.claim(tenant_id)
        credentials, hashed = ours.new_credentials(tenant_id)
        ours.ensure_user(tenant_id, hashed)
        before = role(database, name)
        _, their_hash = theirs.new_credentials(tenant_id)
        for attempt in (
            lambda: theirs.check_owner(tenant_id, hashed),
            lambda: theirs.claim(tenant_id),
            lambda: theirs.ensure_user(tenant_id, their_hash),
        ):
            with pytest.raises(NotOursError, match="belongs to the installation production"):
                attempt()
        theirs.remove_user(tenant_id, hashed)
        theirs.check()
        assert role(database, name) == before
        psycopg.connect(credentials.postgres_url).close()
        topology = TenantTopology(tenant_id=tenant_id, topics=(), partitions=1)
        found = drift.differences(topology, hashed, theirs.survey(), consuming=False)
        kinds = {one.kind for one in found}
        assert DriftKind.FOREIGN in kinds
        assert not kinds & {DriftKind.USER, DriftKind.PASSWORD, DriftKind.PERMISSIONS}
        # As roles were made before there were marks: ours by its group, unless it is in two.
        with database.connection() as connection:
            connection.execute(f'COMMENT ON ROLE "{name}" IS NULL'.encode())
        with pytest.raises(NotOursError, match="carries no installation's mark"):
            theirs.ensure_user(tenant_id, their_hash)
        ours.ensure_user(tenant_id, hashed)
        assert role(database, name) == before
    finally:
        ours.remove_user(tenant_id)
        other.close()
    assert role(database, name) is None


def role(database: Database, name: str) -> object:
    """Give all that the server keeps of a role."""
    with database.connection() as connection:
        return connection.execute(
            "SELECT a.*, shobj_description(a.oid, 'pg_authid'),"
            " ARRAY(SELECT roleid FROM pg_auth_members WHERE member = a.oid)"
            " FROM pg_authid AS a WHERE rolname = %s",
            [name],
        ).fetchone()


def test_a_new_password_ends_the_sessions_of_the_old_one(broker: Broker) -> None:
    tenant = broker.tenant()
    administration = broker.administration
    credentials, hashed = administration.new_credentials(tenant.tenant_id)
    administration.ensure_user(tenant.tenant_id, hashed)
    try:
        with psycopg.connect(credentials.postgres_url) as session:
            administration.ensure_user(tenant.tenant_id, hashed)
            session.execute("SELECT 1")
            administration.end_sessions(tenant.tenant_id)
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
    finally:
        administration.remove_user(tenant.tenant_id)


def test_a_survey_does_not_stumble_over_the_roles_of_another_database(
    broker: Broker, empty_database_url: str
) -> None:
    reader = broker.tenant()
    administration = broker.administration
    administration.claim(reader.tenant_id)
    _, hashed = administration.new_credentials(reader.tenant_id, UserKind.CONSUMER)
    administration.ensure_user(reader.tenant_id, hashed, UserKind.CONSUMER)
    migrate(empty_database_url)
    with closing(Database(empty_database_url, pool_size=2)) as other:
        other.open()
        # Nobody has ever been given anything there: it has no group for consumers yet.
        theirs = PostgresAdministration(other, installation="calm-heron-7f3b")
        assert theirs.survey() is not None
