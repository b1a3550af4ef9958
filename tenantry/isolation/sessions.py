"""Ends tenants' sessions that block others for long, whatever settings they have changed.

A role's limits are only defaults for its sessions: a session may lift them. So this module looks at
what sessions do, and ends those beyond the limits. It also ends a session whose login began with an
old password and ended after the password was changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import psycopg
import structlog
from psycopg import errors, sql

from tenantry.broker.postgres.users import MOST_CONNECTIONS as PUBLISHING
from tenantry.database.failures import one_line
from tenantry.database.locks import insist
from tenantry.database.pool import Connection, Database
from tenantry.isolation.postgres import CONNECTIONS as PROBING
from tenantry.messages.sql_access_postgres import CONNECTIONS as READING
from tenantry.sql import queries

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 3.0
"""Seconds between looks."""

MEND_EVERY: Final = 20
"""Looks between two checks that roles are as they were created."""


MENDING_FAILS: Final = (
    errors.InsufficientPrivilege,
    errors.InternalError,
    errors.LockNotAvailable,
    errors.UndefinedObject,
)
"""Errors that the state of one role may cause; the other roles are mended all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a tenant's session may do before it is ended; times in seconds."""

    transaction: float = 60.0
    """An open transaction keeps deleted rows in place, in every table."""

    locks: int = 500
    """The server's lock table is limited, and shared by all sessions."""

    grace: float = 2.0
    """How long another session may wait for it, or it may keep notifications in a filling queue."""

    notices: float = 0.05
    """The share of the notification queue in use from which on no session may hold it up."""


class TenantsSessions:
    """Ends sessions that go beyond `Limits`. One thread at a time."""

    def __init__(self, database: Database, limits: Limits | None = None) -> None:
        self._database = database
        self._limits = limits or Limits()
        self._sql = queries("sessions")
        self._looks = 0

    def turn(self) -> int:
        """Look, and now and then mend the roles; return how many sessions were ended."""
        ended = self.look()
        self._looks += 1
        if self._looks % MEND_EVERY == 0:
            self.mend()
        return ended

    def mend(self) -> list[str]:
        """Set tenants' roles as new ones are created today; return those that differed.

        Roles that the database's user may not change are left, and logged.
        """
        parameters = {"reading": READING, "probing": PROBING, "publishing": PUBLISHING}
        with self._database.connection() as connection:
            roles = connection.execute(self._sql["roles_to_mend"], parameters).fetchall()
            mended = [role[0] for role in roles if self._mend(connection, role)]
            connection.execute(self._sql["withdraw_messages"])
            connection.execute(self._sql["forget_ended"])
        if mended:
            log.info("tenants_roles.mended", count=len(mended), roles=mended[:10])
        return mended

    def _mend(self, connection: Connection, role: tuple[object, ...]) -> bool:
        name = str(role[0])
        try:
            with connection.transaction():
                # Other sessions change roles too: the next look can mend this one.
                connection.execute("SET LOCAL lock_timeout = 1000")
                connection.execute(self._sql["change_roles"])
                insist(
                    connection,
                    name,
                    lambda: connection.execute(self._sql["mend_role"], role),
                )
        except MENDING_FAILS as error:
            log.warning("tenants_roles.not_mended", user=name, error=one_line(error))
            return False
        return True

    def look(self) -> int:
        """End the sessions that go beyond their limits; return how many."""
        limits = self._limits
        parameters = {
            "longest": timedelta(seconds=limits.transaction),
            "grace": timedelta(seconds=limits.grace),
            "notices": limits.notices,
            "most": limits.locks,
        }
        with self._database.connection() as connection:
            self._roll_back(connection, parameters)
            users: dict[int, str] = {}
            reasons: dict[int, str] = {}
            for pid, user in connection.execute(self._sql["late"]):
                users[pid] = user
                reasons[pid] = "it was let in by an earlier password"
            for pid, user, is_long, keeps_notices in connection.execute(
                self._sql["sessions"], parameters
            ):
                users[pid] = user
                if is_long:
                    reasons[pid] = f"its transaction lasts longer than {limits.transaction:g} s"
                elif keeps_notices:
                    reasons[pid] = "it keeps notifications, and their queue fills"
            if not users:
                return 0
            parameters["pids"] = list(users)
            for pid, count in connection.execute(self._sql["holding_many"], parameters):
                reasons.setdefault(pid, f"it holds {count} locks")
            for (pid,) in connection.execute(self._sql["in_the_way"], parameters):
                reasons.setdefault(pid, f"others wait for it longer than {limits.grace:g} s")
            return sum(
                self._end(connection, pid, users[pid], reason) for pid, reason in reasons.items()
            )

    def _end(self, connection: Connection, pid: int, user: str, reason: str) -> bool:
        try:
            row = connection.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone()
        except errors.InsufficientPrivilege as error:
            log.warning("tenants_sessions.not_ended", user=user, pid=pid, error=one_line(error))
            return False
        log.warning("tenants_sessions.ended", user=user, pid=pid, reason=reason)
        return bool(row and row[0])

    def _roll_back(self, connection: Connection, parameters: dict[str, object]) -> None:
        """Roll back tenants' prepared transactions, which only their owner or a superuser may."""
        for gid, owner in connection.execute(self._sql["prepared"], parameters).fetchall():
            try:
                connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
            except psycopg.Error as error:
                log.warning("tenants_sessions.not_ended", user=owner, error=one_line(error))
            else:
                log.warning("tenants_sessions.ended", user=owner, reason="a prepared transaction")
            finally:
                connection.execute("RESET ROLE")
