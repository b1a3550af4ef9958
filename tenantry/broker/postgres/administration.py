"""Tenants' objects on the embedded broker: rows for exchanges and queues, roles for users."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from psycopg import errors

from tenantry.broker import topology as layout
from tenantry.broker.drift import stranger
from tenantry.broker.port import (
    BrokerError,
    BrokerUnavailableError,
    Credentials,
    KeptLimits,
    NotOursError,
    PasswordHash,
    QueueCounts,
    TenantTopology,
)
from tenantry.broker.postgres import users
from tenantry.broker.survey import Survey, User
from tenantry.database.failures import PortErrors, one_line
from tenantry.database.locks import insist
from tenantry.database.pool import Connection, Database
from tenantry.domain import names
from tenantry.domain.limits import NO_LIMITS, Limits
from tenantry.domain.names import UserKind
from tenantry.sql import queries

log = structlog.get_logger(__name__)

_KEPT: Final = frozenset({"backlog_messages", "backlog_bytes", "connections"})
_LIMITS: Final = "tenantry.broker_limits"


class PostgresAdministration:
    """Makes and removes tenants' objects. Callable from any thread.

    `in_hand` gives each tenant's number of unsettled messages, which are not pending any more.
    """

    def __init__(
        self,
        database: Database,
        *,
        installation: str,
        in_hand: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Tenants' roles carry the name of the `installation`."""
        self._installation = installation
        self._database = database
        self._errors = PortErrors(BrokerUnavailableError, BrokerError, where=database.where)
        self._in_hand = in_hand
        self._sql = queries("queues")

    def ensure_topology(self, topology: TenantTopology) -> None:
        """Make the tenant's missing exchange and queues."""
        queues = topology.queues()
        plan = layout.plan(replace(topology, consumer_access=False), "classic")
        bindings = [one for one in plan.bindings if one.exchange == topology.exchange]
        with self._connection() as connection, connection.transaction():
            self._lock(connection, topology.tenant_id)
            connection.execute(
                self._sql["ensure_queues"],
                {
                    "tenant": topology.tenant_id,
                    "names": [one.name for one in queues],
                    "topics": [one.topic for one in queues],
                    "partitions": [one.partition for one in queues],
                },
            )
            connection.execute(
                self._sql["ensure_bindings"],
                {
                    "stream": topology.exchange,
                    "queues": [one.queue for one in bindings],
                    "keys": [one.routing_key for one in bindings],
                },
            )
            if topology.consumer_access:
                topics = list(dict.fromkeys(one.topic for one in queues))
                parameters = {"tenant": topology.tenant_id, "topics": topics}
                connection.execute(self._sql["ensure_group"], parameters)

    def remove_topology(self, tenant_id: str) -> int:
        """Delete the tenant's exchange and all its queues; return how many messages they held."""
        with self._connection() as connection, connection.transaction():
            self._lock(connection, tenant_id)
            connection.execute(self._sql["remove_group"], {"tenant": tenant_id})
            connection.execute(self._sql["limit_tenant"], _limits_row(tenant_id, NO_LIMITS))
            gone = connection.execute(self._sql["remove_queues"], {"tenant": tenant_id})
            queues = [row[0] for row in gone]
            row = connection.execute(
                self._sql["drop_messages"], {"tenant": tenant_id, "queues": queues}
            ).fetchone()
        return 0 if row is None else int(row[0])

    def check_owner(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Raise `NotOursError` if another installation has the name of the tenant's role."""
        with self._connection() as connection:
            self._ours(connection, names.username(tenant_id, kind), known)

    def claim(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Make sure that the tenant's role exists and is ours."""
        with self._roles() as connection:
            if self._ours(connection, names.username(tenant_id, kind), known) is not None:
                return
            try:
                with connection.transaction():
                    users.make(connection, names.username(tenant_id, kind), self._installation)
            except (errors.DuplicateObject, errors.UniqueViolation):
                # Another database's daemon was faster. Its role is visible once it commits.
                self._ours(connection, names.username(tenant_id, kind), known)

    def ensure_user(
        self, tenant_id: str, password: PasswordHash, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """Make the tenant's role with this password and its rights."""
        with self._roles() as connection:
            self._ours(connection, names.username(tenant_id, kind), password)
            users.ensure_group(connection, kind)
            name = names.username(tenant_id, kind)
            make = partial(users.ensure_user, connection, name, password, self._installation)
            insist(connection, name, make)

    def remove_user(
        self, tenant_id: str, known: PasswordHash | None = None, kind: UserKind = UserKind.PRODUCER
    ) -> None:
        """End all publishing for the tenant, and drop its role, unless that is another's.

        A session that publishes for the tenant in an open transaction may finish within some
        seconds; then it is ended. So nothing is committed to a deleted queue.
        """
        name = names.username(tenant_id, kind)
        ours = True
        with self._roles() as connection:
            try:
                self._ours(connection, names.username(tenant_id, kind), known)
            except NotOursError as error:
                log.warning("broker.user_left_to_another", user=name, reason=str(error))
                ours = False
            else:
                insist(connection, name, partial(users.lock_out, connection, name))
        if kind is UserKind.PRODUCER:
            with self._connection() as connection:
                users.close_exchange(connection, names.exchange_name(tenant_id), name)
        if ours:
            with self._roles() as connection:
                insist(connection, name, partial(users.remove_user, connection, name))

    @property
    def kept_limits(self) -> KeptLimits:
        """See `Administration.kept_limits`: a session has no channels."""
        return KeptLimits(broker="the embedded broker", names=_KEPT)

    def limits_of(self, topology: TenantTopology, limits: Limits) -> Mapping[str, object]:  # noqa: ARG002
        """See `Administration.limits_of`."""
        there = {name: one for name, one in limits.of_the_broker.items() if name in _KEPT}
        return {_LIMITS: there} if there else {}

    def ensure_limits(self, topology: TenantTopology, limits: Limits) -> None:
        """See `Administration.ensure_limits`."""
        tenant_id = topology.tenant_id
        with self._connection() as connection:
            connection.execute(self._sql["limit_tenant"], _limits_row(tenant_id, limits))
            connection.execute(self._sql["recount_backlog"], {"tenant": tenant_id})
        with self._roles() as connection:
            for kind in UserKind:
                name = names.username(tenant_id, kind)
                if self._ours(connection, name, None) is not None:
                    insist(connection, name, partial(users.limit, connection, name))

    def remove_group(self, tenant_id: str) -> None:
        """See `Administration.remove_group`: here a group is only its progress through the rows."""
        with self._connection() as connection:
            connection.execute(self._sql["remove_group"], {"tenant": tenant_id})

    def end_sessions(self, tenant_id: str, kind: UserKind = UserKind.PRODUCER) -> None:
        """End the sessions of the tenant's role."""
        with self._connection() as connection:
            users.end_sessions(connection, names.username(tenant_id, kind))

    def new_credentials(
        self, tenant_id: str, kind: UserKind = UserKind.PRODUCER
    ) -> tuple[Credentials, PasswordHash]:
        """Generate a password and its hash; nothing changes on the broker yet."""
        password = secrets.token_urlsafe(32)
        name = names.username(tenant_id, kind)
        credentials = Credentials(
            username=name,
            password=password,
            postgres_url=self._database.url_for(name, password),
        )
        return credentials, users.scram(password)

    def queue_counts(self) -> Mapping[str, QueueCounts]:
        """Count the messages in each tenant's queues, now."""
        in_hand = self._in_hand()
        with self._connection() as connection:
            rows = connection.execute(self._sql["queue_counts"]).fetchall()
        return {
            tenant_id: QueueCounts(
                ready=max(0, lying - in_hand.get(tenant_id, 0)),
                unsettled=min(lying, in_hand.get(tenant_id, 0)),
                dead_letters=dead_letters,
            )
            for tenant_id, lying, dead_letters in rows
        }

    def survey(self) -> Survey:
        """Survey all tenants' objects, in a few queries and one more for each limited backlog.

        That query recounts the backlog.
        """
        with self._connection() as connection:
            queues = connection.execute(self._sql["surveyed_queues"]).fetchall()
            bindings = connection.execute(self._sql["surveyed_bindings"]).fetchall()
            groups = {one.value: users.group_of(connection, one) for one in UserKind}
            roles = connection.execute(self._sql["surveyed_users"], groups).fetchall()
            passwords = self._passwords(connection)
            limits = connection.execute(self._sql["limited"]).fetchall()
            for tenant_id, _, messages, size in limits:
                if messages is not None or size is not None:
                    connection.execute(self._sql["recount_backlog"], {"tenant": tenant_id})
        found = _surveyed(queues, bindings, roles, passwords, self._installation)
        return replace(found, limits=dict(map(_limits_found, limits)))

    def check(self) -> None:
        """Raise `BrokerError`, with a clear line, if the database can't be the broker."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT current_user, rolsuper OR rolcreaterole FROM pg_roles"
                " WHERE rolname = current_user"
            ).fetchone()
        if row is None or not row[1]:
            user = "the database's user" if row is None else row[0]
            raise BrokerError(
                f"the embedded broker makes a role for each tenant, which {user} may not on"
                f" {self._database.where}: ALTER ROLE ... CREATEROLE, or set rabbitmq.url"
            )
        with self._roles() as connection:
            for kind in UserKind:
                users.ensure_group(connection, kind)

    def _passwords(self, connection: Connection) -> Mapping[str, str]:
        try:
            with connection.transaction():
                rows = connection.execute(self._sql["surveyed_passwords"]).fetchall()
        except errors.InsufficientPrivilege:
            return {}
        return dict(rows)

    def _ours(self, connection: Connection, name: str, known: PasswordHash | None) -> User | None:
        """Return a tenant's role, or None if there is none. Raises `NotOursError`."""
        user = users.find(connection, name)
        whose = None if user is None else stranger(user, self._installation, known)
        if user is not None and whose is not None:
            raise NotOursError(
                f"role {name!r} of {self._database.where} {whose}, and this is the installation "
                f"{self._installation}; roles are the whole server's: choose another tenant id, or"
                " give each installation a PostgreSQL of its own; if nobody needs that role any"
                f' more, drop it (DROP ROLE "{name}")',
                here=user.permissions is not None,
            )
        return user

    def _lock(self, connection: Connection, tenant_id: str) -> None:
        connection.execute(self._sql["lock_topology"], {"tenant": tenant_id})

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._errors, self._database.connection() as connection:
            yield connection

    @contextmanager
    def _roles(self) -> Iterator[Connection]:
        """Open a connection that alone changes roles in this database."""
        with self._connection() as connection, connection.transaction():
            # This also refuses a past term: changes of roles pass no table of ours that would.
            connection.execute("SELECT tenantry.hold('roles')")
            try:
                yield connection
            except errors.InternalError as error:
                # Roles are the whole server's, and another database's daemon has no lock here.
                raise BrokerUnavailableError(
                    f"{self._database.where}: {one_line(error)}"
                ) from error


def _limits_row(tenant_id: str, limits: Limits) -> dict[str, object]:
    return {
        "tenant": tenant_id,
        "connections": limits.connections,
        "messages": limits.backlog_messages,
        "bytes": limits.backlog_bytes,
    }


def _limits_found(row: tuple[Any, ...]) -> tuple[str, Mapping[str, object]]:
    tenant_id, connections, messages, size = row
    limits = Limits(connections=connections, backlog_messages=messages, backlog_bytes=size)
    return tenant_id, {_LIMITS: limits.of_the_broker}


def _surveyed(
    queues: Iterable[tuple[Any, ...]],
    bindings: Iterable[tuple[Any, ...]],
    roles: Iterable[tuple[Any, ...]],
    passwords: Mapping[str, str],
    installation: str,
) -> Survey:
    """Make a survey of rows.

    Some objects have no rows and exist as long as the tenant's default queue does: the dead-letter
    exchange, the tenant's queue on it, and that rejected messages go there.
    """
    exchanges = {names.DEAD_LETTER_EXCHANGE: "direct"}
    arguments: dict[str, Mapping[str, object]] = {}
    bound = {(exchange, queue, key) for exchange, queue, key in bindings}
    consumed: set[str] = set()
    for name, tenant_id, has_consumer in queues:
        plan = layout.plan(TenantTopology(tenant_id=tenant_id, topics=(), partitions=1), "classic")
        dead_letters, default = plan.queues
        exchanges[names.exchange_name(tenant_id)] = "direct"
        arguments[name] = default.arguments
        if name == default.name:
            arguments[dead_letters.name] = dead_letters.arguments
            bound.add((names.DEAD_LETTER_EXCHANGE, dead_letters.name, tenant_id))
        if has_consumer:
            consumed.add(name)
    return Survey(
        exchanges=exchanges,
        queues=arguments,
        bindings=frozenset(bound),
        users={
            name: users.told_of(
                name,
                told,
                allowed=allowed,
                groups=groups,
                password=passwords.get(name, kept or ""),
                powerful=powerful,
            )
            for name, powerful, kept, allowed, told, groups in roles
        },
        consumed=frozenset(consumed),
        installation=installation,
    )
