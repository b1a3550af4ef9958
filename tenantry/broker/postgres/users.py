"""Tenants' database roles: one publishes to the tenant's exchange and looks into its queues.

Another, if consumer access is granted, consumes what is stored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from psycopg import errors, sql

from tenantry.broker import topology as layout
from tenantry.broker.drift import mark_of, marks_in
from tenantry.broker.port import PasswordHash
from tenantry.broker.survey import User
from tenantry.database.pool import Connection
from tenantry.domain.names import UserKind
from tenantry.sql import queries

log = structlog.get_logger(__name__)

MOST_CONNECTIONS: Final = 40
"""Connections a tenant may have at once to publish to the embedded broker, and as many to read."""

_FIND: Final = """
SELECT pg_catalog.shobj_description(r.oid, 'pg_authid'),
       pg_catalog.bool_or(g.rolname IS NOT DISTINCT FROM %(group)s),
       coalesce(pg_catalog.array_agg(g.rolname::text) FILTER (WHERE g.rolname <> %(group)s), '{}')
FROM pg_catalog.pg_roles AS r
LEFT JOIN (pg_catalog.pg_auth_members AS m
           JOIN pg_catalog.pg_roles AS g
               ON g.oid = m.roleid AND g.rolname ~ '^tenantry_(producers|consumers)_')
    ON m.member = r.oid
WHERE r.rolname = %(role)s
GROUP BY r.oid
"""

VERIFIER: Final = "SCRAM-SHA-256$"
"""The prefix of PostgreSQL's password hashes, unlike another broker's."""

_ITERATIONS: Final = 4096
_SALT_BYTES: Final = 16

GRACE: Final = 2.0
"""Seconds a transaction that has published may take to end by itself."""

ENDING: Final = 5.0
"""Seconds to wait in all for transactions whose sessions are ended, or can't be ended."""

AGAIN: Final = 0.02

TRIES: Final = 3

_GRACE_MS: Final = round(GRACE * 1000)


def scram(password: str) -> PasswordHash:
    """Make PostgreSQL's verifier of a password (RFC 5803), so that it never sees the password."""
    salt = secrets.token_bytes(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    shown = (base64.b64encode(part).decode() for part in (salt, stored, server))
    salt64, stored64, server64 = shown
    return PasswordHash(value=f"{VERIFIER}{_ITERATIONS}:{salt64}${stored64}:{server64}")


FUNCTIONS: Final[Mapping[UserKind, Sequence[str]]] = {
    UserKind.PRODUCER: ("publish", "publish_bytes", "publish_many", "look"),
    UserKind.CONSUMER: ("receive", "settle"),
}
"""The functions that a tenant's role may call, by its kind."""


def kind_of(name: str) -> UserKind:
    """Return the kind of a tenant's role, by its name."""
    return UserKind(name.rpartition("_")[2])


def group_of(connection: Connection, kind: UserKind) -> str:
    """Return the name of the group role whose members may call the tenants' functions.

    Roles belong to the whole server, so the name ends with the database's oid: the group's members
    are this database's tenants.
    """
    row = connection.execute(
        "SELECT format('tenantry_%%ss_%%s', %s::text, oid) FROM pg_database"
        " WHERE datname = current_database()",
        [kind.value],
    ).fetchone()
    return "" if row is None else str(row[0])


def ensure_group(connection: Connection, kind: UserKind) -> None:
    """Make the group role and grant it its rights in this database."""
    name = group_of(connection, kind)
    group = sql.Identifier(name)
    if not _exists(connection, name):
        try:
            with connection.transaction():
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(group))
        except (errors.DuplicateObject, errors.UniqueViolation):
            log.debug("broker.group_made_by_another")
    row = connection.execute(
        "SELECT has_schema_privilege(%s, 'tenantry', 'USAGE')", [name]
    ).fetchone()
    if row is None or not row[0]:
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA tenantry TO {}").format(group))
    rows = connection.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc AS p"
        " WHERE p.pronamespace = 'tenantry'::regnamespace AND p.prosecdef"
        " AND p.proname = ANY(%s) AND NOT has_function_privilege(%s, p.oid, 'EXECUTE')",
        [list(FUNCTIONS[kind]), name],
    ).fetchall()
    for (signature,) in rows:
        grant = sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(sql.SQL(signature), group)
        connection.execute(grant)


def find(connection: Connection, name: str) -> User | None:
    """Return a role as it is now, or None; its password hash is not read.

    It belongs to this database by its group, and to others by theirs.
    """
    row = connection.execute(
        _FIND, {"role": name, "group": group_of(connection, kind_of(name))}
    ).fetchone()
    if row is None:
        return None
    told, allowed, groups = row
    return told_of(name, told, allowed=allowed, groups=groups)


def told_of(
    name: str,
    told: str | None,
    *,
    allowed: bool,
    groups: Sequence[str],
    password: str = "",
    powerful: bool = False,
) -> User:
    """Make a `User` of a role's comment and the groups it is in."""
    return User(
        password_hash=password,
        tags=frozenset({"powerful"} if powerful else ()),
        permissions=(
            layout.permissions(layout.owner_of(name) or "", kind_of(name)) if allowed else None
        ),
        marks=marks_in((told or "").split()),
        elsewhere=tuple(f"another database (by {group})" for group in groups),
    )


def make(connection: Connection, name: str, installation: str) -> None:
    """Make a tenant's role without a login, and mark it as ours."""
    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
    mark(connection, name, installation)


def mark(connection: Connection, name: str, installation: str) -> None:
    """Add the installation's mark to a role's comment."""
    row = connection.execute(
        "SELECT pg_catalog.shobj_description(oid, 'pg_authid')"
        " FROM pg_catalog.pg_roles WHERE rolname = %s",
        [name],
    ).fetchone()
    said = "" if row is None else row[0] or ""
    if marks_in(said.split()) == {installation}:
        return
    comment = f"{said} {mark_of(installation)}".strip()
    connection.execute(
        sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(name), sql.Literal(comment))
    )


def end_sessions(connection: Connection, name: str) -> None:
    """End a role's sessions, and those still logging in; see migration 0028."""
    connection.execute("SELECT tenantry.end_sessions(%s)", [name])


def ensure_user(
    connection: Connection, name: str, password: PasswordHash, installation: str
) -> None:
    """Make a tenant's role with this password, and mark it as ours.

    A hash of another broker's kind leaves the role without a password, until it is given a new one.
    """
    verifier = password.value if password.value.startswith(VERIFIER) else None
    if verifier is None:
        log.warning("broker.password_of_another_broker", user=name, remedy="rotate its credentials")
    role = sql.Identifier(name)
    if not _exists(connection, name):
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    mark(connection, name, installation)
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN INHERIT {} PASSWORD {}").format(
            role,
            sql.SQL(" ".join(_rights_too_many(connection, name))),
            sql.Literal(verifier),
        )
    )
    group = sql.Identifier(group_of(connection, kind_of(name)))
    connection.execute(sql.SQL("GRANT {} TO {}").format(group, role))
    # A user without SUPERUSER may end only the sessions of roles that it is a member of.
    connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    limit(connection, name)


def limit(connection: Connection, name: str) -> None:
    """Set a tenant's role's settings and its limit of connections."""
    connection.execute(
        "SELECT tenantry.limit_role(%s, 'producer', coalesce(("
        " SELECT l.connections FROM tenantry.broker_limits AS l WHERE l.tenant_id = %s), %s))",
        [name, layout.owner_of(name), MOST_CONNECTIONS],
    )


def lock_out(connection: Connection, name: str) -> None:
    """Bar a tenant's role from logging in, from the commit on."""
    if _exists(connection, name):
        role = sql.Identifier(name)
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(role))


def remove_user(connection: Connection, name: str) -> None:
    """End the sessions of a tenant's locked-out role, and drop it.

    A role that owns objects stays, locked out for good.
    """
    if not _exists(connection, name):
        return
    role = sql.Identifier(name)
    # Only a role's members may end its sessions, and the role may have revoked that membership.
    connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
    end_sessions(connection, name)
    group = sql.Identifier(group_of(connection, kind_of(name)))
    connection.execute(sql.SQL("REVOKE {} FROM {}").format(group, role))
    try:
        with connection.transaction():
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
    except errors.DependentObjectsStillExist as error:
        log.warning(
            "broker.user_is_locked_out",
            user=name,
            reason=error.diag.message_detail,
            remedy="it owns objects or has rights beyond ours; see to them, then DROP ROLE",
        )


def _rights_too_many(connection: Connection, name: str) -> list[str]:
    """Return the attributes to revoke; only set ones, as naming others may need more rights."""
    row = connection.execute(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls"
        " FROM pg_roles WHERE rolname = %s",
        [name],
    ).fetchone()
    words = ("NOSUPERUSER", "NOCREATEDB", "NOCREATEROLE", "NOBYPASSRLS")
    return [word for word, has in zip(words, row or (), strict=False) if has]


def _exists(connection: Connection, name: str) -> bool:
    query = "SELECT FROM pg_roles WHERE rolname = %s"
    return connection.execute(query, [name]).fetchone() is not None


class Publisher(NamedTuple):
    """A transaction that has put messages into a queue, and may act for the tenant."""

    transaction: str
    pid: int
    user: str
    endable: bool


def close_exchange(connection: Connection, exchange: str, user: str) -> None:
    """Remove an exchange's routing keys, and wait for transactions that have published by them.

    The order matters: a transaction that reads the keys from now on finds none, and one that has
    read them has held a lock on the queues' table since before that. After a while the sessions of
    such transactions are ended. Those that can't be ended are named in the log; what they commit
    after all is swept.
    """
    until = time.monotonic() + GRACE
    for left in reversed(range(TRIES)):
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {_GRACE_MS}".encode())
                connection.execute(queries("queues")["close_exchange"], {"stream": exchange})
        except errors.LockNotAvailable:
            # A transaction at REPEATABLE READ has published by these keys.
            if not left:
                raise
            _end(connection, publishing(connection, user))
        else:
            break
    known = publishing(connection, user)
    ended = False
    while known:
        now = time.monotonic()
        if now >= until and not ended:
            _end(connection, known)
            ended = True
        if now >= until + ENDING:
            _blame(known)
            return
        time.sleep(AGAIN)
        still = {one.transaction for one in publishing(connection, user)}
        known = [one for one in known if one.transaction in still]


def publishing(connection: Connection, user: str) -> list[Publisher]:
    """List the open transactions that may have published as a tenant's `user`."""
    rows = connection.execute(queries("queues")["publishing"], {"user": user})
    return [Publisher(*row) for row in rows]


def _end(connection: Connection, known: list[Publisher]) -> None:
    for one in known:
        if not one.endable:
            continue
        try:
            connection.execute(sql.SQL("SELECT pg_terminate_backend(%s)"), [one.pid])
        except errors.InsufficientPrivilege:
            continue  # logged by `_blame`, if it does not end by itself
        log.warning("broker.publisher_ended", pid=one.pid, user=one.user, reason="tenant_deleted")


def _blame(known: list[Publisher]) -> None:
    for one in known:
        log.warning(
            "broker.publisher_outlives_its_tenant",
            pid=one.pid,
            user=one.user,
            remedy="it has published in a transaction that is still open: what it commits will be"
            " swept; end its session (pg_terminate_backend)",
        )
