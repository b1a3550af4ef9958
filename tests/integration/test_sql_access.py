"""A tenant's role in a real PostgreSQL: its own rows, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tenantry.database.conninfo import url_for
from tenantry.database.installation import find_installation
from tenantry.database.migrations import migrate
from tenantry.database.pool import Database
from tenantry.isolation.sessions import TenantsSessions
from tenantry.journal.port import JournalUnavailableError
from tenantry.messages.port import Incoming, MessageStoreError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import CONNECTIONS, PostgresSqlAccess
from tests.held_logins import held_role
from tests.services_postgres import admin_url, database, grant

LONGEST = "a-tenant-whose-id-has-40-characters-0000"
OTHER = f"{LONGEST[:-1]}1"
TENANTS = (LONGEST, OTHER, "a")


def fill(database: Database) -> None:
    store = PostgresMessageStore(database)
    for tenant_id in TENANTS:
        store.create_partition(tenant_id)
        store.store(
            tenant_id,
            [
                Incoming(f"{tenant_id}-{n}", "default", 0, b"{}", None, None, None)
                for n in range(len(tenant_id))
            ],
        )


@pytest.fixture
def access(database: Database) -> Iterator[PostgresSqlAccess]:
    fill(database)
    access = PostgresSqlAccess(database)
    yield access
    for tenant_id in TENANTS:  # roles outlive a test's database
        access.revoke(tenant_id)


def rows(url: str, query: str = "SELECT tenant_id, count(*) FROM messages GROUP BY 1") -> list:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_role_sees_its_own_tenants_rows_whatever_it_asks_for(access: PostgresSqlAccess) -> None:
    for tenant_id in TENANTS:
        url = grant(access, tenant_id).url
        assert rows(url) == [(tenant_id, len(tenant_id))]
        assert rows(url, f"SELECT 1 FROM messages WHERE tenant_id <> '{tenant_id}'") == []


def test_only_the_tenants_own_partition_is_looked_at(access: PostgresSqlAccess) -> None:
    plan = rows(grant(access, "a").url, "EXPLAIN (ANALYZE, COSTS off) SELECT * FROM messages")
    scans = [line for (line,) in plan if "Scan on messages_" in line and "never" not in line]
    assert len(scans) == 1
    assert "messages_a " in f"{scans[0]} "


def test_a_function_that_tells_what_it_is_given_is_not_given_others_rows(
    access: PostgresSqlAccess,
) -> None:
    url = grant(access, "a").url
    leaky = "SELECT 1 FROM messages WHERE 1 / (CASE tenant_id WHEN 'a' THEN 1 ELSE 0 END) = 1"
    assert len(rows(url, leaky)) == 1  # a division by zero would tell of others' rows
    assert rows(url, "SELECT * FROM pg_stats WHERE schemaname IN ('public', 'tenantry')") == []


def test_rights_on_a_partition_granted_by_mistake_show_nothing_of_others(
    access: PostgresSqlAccess, database: Database
) -> None:
    granted = grant(access, "a")
    with database.connection() as connection:
        for tenant_id in TENANTS:
            connection.execute(
                sql.SQL("GRANT SELECT ON {} TO {}").format(
                    sql.Identifier("tenantry", f"messages_{tenant_id}"),
                    sql.Identifier(granted.username),
                )
            )
        connection.execute(
            sql.SQL("GRANT USAGE ON SCHEMA tenantry TO {}").format(sql.Identifier(granted.username))
        )
    assert len(rows(granted.url, "SELECT * FROM tenantry.messages_a")) == 1
    assert rows(granted.url, f'SELECT * FROM tenantry."messages_{LONGEST}"') == []


def test_another_grant_replaces_the_password_of_which_the_server_only_gets_a_hash(
    access: PostgresSqlAccess, database: Database
) -> None:
    first, second = grant(access, "a"), grant(access, "a")
    assert first.username == second.username
    with database.connection() as connection:
        (kept,) = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s", [first.username]
        ).fetchone() or ("",)
    assert matches(kept, second.password)
    assert not matches(kept, first.password)
    assert second.password not in f"{second!r}"


def test_another_grant_ends_the_sessions_of_the_first_and_says_whose_the_role_is(
    access: PostgresSqlAccess, database: Database
) -> None:
    installation = find_installation(database)
    first, neighbour = grant(access, "a"), grant(access, "b")
    with psycopg.connect(first.url) as session, psycopg.connect(neighbour.url) as other:
        session.execute("SELECT 1")
        second = grant(access, "a")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
        other.execute("SELECT 1")
    psycopg.connect(second.url).close()
    with database.connection() as connection:
        query = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s"
        said = connection.execute(query, [second.username]).fetchone()
    assert said == (f"tenantry-{installation}",)


def test_a_grant_whose_last_step_fails_leaves_the_password_as_it_was(
    access: PostgresSqlAccess, database: Database
) -> None:
    first = grant(access, "a")
    for tenant_id in ("a", LONGEST):
        with pytest.raises(JournalUnavailableError), access.granting(tenant_id):
            raise JournalUnavailableError("away")
    with database.connection() as connection:
        roles = connection.execute(
            "SELECT rolname, rolpassword FROM pg_authid WHERE rolname ~ '_sql_[0-9]+$'"
            " AND rolname ~ ('_' || (SELECT oid FROM pg_database"
            " WHERE datname = current_database()) || '$') AND rolname ~ '^tenant_'"
        ).fetchall()
    ((role, kept),) = roles
    assert role == first.username
    assert matches(kept, first.password)


def matches(verifier: str, password: str) -> bool:
    """Check a password as a server does (RFC 5802); this one trusts everybody who gets to it."""
    method, rounds, salt, stored, _ = re.split(r"[$:]", verifier)
    assert method == "SCRAM-SHA-256"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    key = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(key).digest() == base64.b64decode(stored)


def test_a_role_has_so_many_connections_at_most(access: PostgresSqlAccess) -> None:
    url = grant(access, "a").url
    opened = [psycopg.connect(url) for _ in range(CONNECTIONS)]
    try:
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(url)
    finally:
        for connection in opened:
            connection.close()


def test_revoking_ends_the_sessions_and_drops_the_role(access: PostgresSqlAccess) -> None:
    url = grant(access, "a").url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT FROM messages")
        assert access.revoke("a")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match=r"does not exist|authentication failed"):
        psycopg.connect(url)
    assert not access.revoke("a")


@pytest.fixture
def modest() -> Iterator[Callable[[str], Database]]:
    """Databases that are owned by a user who is no superuser, with such attributes as are given."""
    name = f"modest_{secrets.token_hex(4)}"
    opened: list[Database] = []
    with psycopg.connect(admin_url(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'modest'").format(sql.Identifier(name))
        )
        with database(admin_url(), migrated=False) as url:

            def make(attributes: str) -> Database:
                admin.execute(
                    sql.SQL("ALTER ROLE {} {}").format(
                        sql.Identifier(name),
                        sql.SQL(attributes),  # type: ignore[arg-type]
                    )
                )
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(
                        sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                            sql.Identifier(connection.info.dbname), sql.Identifier(name)
                        )
                    )
                made = Database(url.replace("postgres@", f"{name}:modest@"))
                made.open()
                migrate(made)
                fill(made)
                opened.append(made)
                return made

            yield make
            for one in opened:
                access = PostgresSqlAccess(one)
                for tenant_id in TENANTS:
                    access.revoke(tenant_id)
                one.close()


def test_a_daemon_that_is_no_superuser_grants_and_revokes(
    modest: Callable[[str], Database],
) -> None:
    access = PostgresSqlAccess(modest("CREATEROLE"))
    url = grant(access, LONGEST).url
    assert rows(url) == [(LONGEST, len(LONGEST))]
    with psycopg.connect(url) as connection:
        assert access.revoke(LONGEST)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_daemon_that_is_no_superuser_ends_who_comes_late_by_an_earlier_password(
    modest: Callable[[str], Database],
) -> None:
    database = modest("CREATEROLE")
    access = PostgresSqlAccess(database)
    with held_role(grant(access, "a").url) as held:
        new = grant(access, "a").url
        with held.go_on() as late, psycopg.connect(new) as good:
            assert TenantsSessions(database).look() == 1
            with pytest.raises(psycopg.OperationalError):
                late.execute("SELECT 1")
            good.execute("SELECT 1")


def test_a_daemon_that_may_not_make_roles_says_what_it_lacks(
    modest: Callable[[str], Database],
) -> None:
    access = PostgresSqlAccess(modest("NOCREATEROLE"))
    with pytest.raises(MessageStoreError, match="CREATEROLE"):
        grant(access, "a")
    assert not access.revoke("a")


@pytest.mark.parametrize(
    ("parameters", "url"),
    [
        ({"host": "db", "dbname": "t", "user": "x"}, "postgresql://u:p%2F@db:5432/t"),
        (
            {"host": "/run/pg", "port": "5433", "dbname": "t"},
            "postgresql://u:p%2F@/t?host=/run/pg&port=5433",
        ),
        (
            {"host": "a,b", "port": "1,2", "dbname": "t", "sslmode": "require"},
            "postgresql://u:p%2F@a:1,b:2/t?sslmode=require",
        ),
        ({"host": "::1", "user": "me", "password": "s"}, "postgresql://u:p%2F@[::1]:5432/me"),
    ],
)
def test_another_users_url_leads_to_the_same_place(parameters: dict[str, str], url: str) -> None:
    assert url_for(parameters, "u", "p/") == url
