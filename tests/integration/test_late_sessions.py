"""A login that begins by a password and ends when that holds no more: its session does not last."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import psycopg
import pytest

from tenantry.broker.postgres.administration import PostgresAdministration
from tenantry.database.pool import Database
from tenantry.domain.names import UserKind
from tenantry.isolation.sessions import TenantsSessions
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.sql_access_postgres import PostgresSqlAccess
from tests.brokers import INSTALLATION
from tests.held_logins import held_role
from tests.services_postgres import grant


class Roles:
    """A tenant's roles in a database, and what changes their passwords; each call gives a URL."""

    def __init__(self, database: Database) -> None:
        self.tenant = f"t{secrets.token_hex(5)}"
        self.access = PostgresSqlAccess(database)
        self.administration = PostgresAdministration(database, installation=INSTALLATION)
        self.administration.check()
        PostgresMessageStore(database).create_partition(self.tenant)

    def rotated(self, kind: UserKind) -> str:
        url = self.made(kind)
        self.administration.end_sessions(self.tenant, kind)
        return url

    def made_again(self, kind: UserKind) -> str:
        self.administration.remove_user(self.tenant, kind=kind)
        return self.made(kind)

    def made(self, kind: UserKind) -> str:
        credentials, hashed = self.administration.new_credentials(self.tenant, kind)
        self.administration.ensure_user(self.tenant, hashed, kind)
        return credentials.postgres_url

    def granted(self) -> str:
        return grant(self.access, self.tenant).url

    def granted_again(self) -> str:
        self.access.revoke(self.tenant)
        return self.granted()

    def remove(self) -> None:
        self.access.revoke(self.tenant)
        for kind in UserKind:
            self.administration.remove_user(self.tenant, kind=kind)


@pytest.fixture
def roles(database: Database) -> Iterator[Roles]:
    with ExitStack() as stack:
        roles = Roles(database)
        stack.callback(roles.remove)
        yield roles


Change = Callable[[Roles], str]

PRODUCER, CONSUMER = UserKind.PRODUCER, UserKind.CONSUMER

CHANGES: Final[dict[str, tuple[Change, Change]]] = {
    "producer": (lambda one: one.made(PRODUCER), lambda one: one.rotated(PRODUCER)),
    "producer made again": (lambda one: one.made(PRODUCER), lambda one: one.made_again(PRODUCER)),
    "consumer": (lambda one: one.made(CONSUMER), lambda one: one.rotated(CONSUMER)),
    "consumer made again": (lambda one: one.made(CONSUMER), lambda one: one.made_again(CONSUMER)),
    "reader": (Roles.granted, Roles.granted),
    "reader made again": (Roles.granted, Roles.granted_again),
}
"""How a role gets its password, and how its next one."""


@pytest.mark.parametrize("changed", CHANGES)
def test_a_role_that_was_let_in_by_its_earlier_password_is_ended_at_the_next_look(
    roles: Roles, database: Database, changed: str
) -> None:
    first, then = CHANGES[changed]
    sessions = TenantsSessions(database)
    old = first(roles)
    with held_role(old) as held:
        new = then(roles)
        with psycopg.connect(new, autocommit=True) as good, held.go_on() as late:
            late.execute("SELECT 1")
            assert sessions.look() == 1
            with pytest.raises(psycopg.OperationalError):
                late.execute("SELECT 1")
            good.execute("SELECT 1")
            assert sessions.look() == 0


def test_what_was_ended_long_ago_is_forgotten_and_ends_nothing(
    roles: Roles, database: Database
) -> None:
    sessions = TenantsSessions(database)
    with psycopg.connect(roles.rotated(PRODUCER), autocommit=True) as session:
        for when, left in (("-1 minute", 1), ("2 minutes 10 s", 1), ("1 hour 10 s", 0)):
            with database.connection() as connection:
                # As if the clock had been set back, or the time had passed.
                connection.execute(
                    "UPDATE tenantry.ended_sessions"
                    " SET begun_until = clock_timestamp() - %s::interval",
                    [when],
                )
            assert sessions.look() == 0
            sessions.mend()
            assert count(database) == left
        session.execute("SELECT 1")


def count(database: Database) -> int:
    with database.connection() as connection:
        return len(connection.execute("SELECT FROM tenantry.ended_sessions").fetchall())
