"""Shares out the server's free connections, and warns of unsafe settings of the server."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, replace
from typing import Final

import psycopg
import structlog

from tenantry.database.errors import DatabaseUnfitError
from tenantry.database.failures import one_line
from tenantry.database.pool import Database

log: Final = structlog.get_logger("database")

ALONE: Final = 6
"""Connections outside the pools: for the term, the journal's notices, the embedded broker's
reader or Iggy's two, and two for occasional work (audits, browsing dead letters)."""

LEFT: Final = 8
"""One in this many of the free connections is left to other programs, two at least."""

WARNED: Final = {
    "fsync": "after a power cut the database may be beyond repair, and what was confirmed with it",
    "full_page_writes": "after a power cut the database may be beyond repair",
    "autovacuum": "tables grow, and slow down, without bound",
    "track_counts": "autovacuum sees nothing to do: tables grow, and slow down, without bound",
    "track_activities": "transactions of tenants that last too long can't be seen",
}
"""Server-wide settings that should be on, and the consequence where they are off."""

_LOOK: Final = """
SELECT current_setting('max_connections')::integer AS most,
       current_setting('superuser_reserved_connections')::integer
         + coalesce(current_setting('reserved_connections', true), '0')::integer AS reserved,
       r.rolsuper, r.rolconnlimit, d.datconnlimit,
       (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_backend_pid()),
       (SELECT count(*) FROM pg_stat_activity WHERE datid = d.oid AND pid <> pg_backend_pid()),
       (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid AND pid <> pg_backend_pid())
FROM pg_roles AS r, pg_database AS d
WHERE r.rolname = session_user AND d.datname = current_database()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many connections are free on a server for this user in this database.

    `narrowest` names the limit that applies.
    """

    free: int
    narrowest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many connections each part may have at most; the front is another process."""

    pool: int
    pages: int
    front_pool: int
    front_pages: int
    front_publishing: int = 0
    handlers: int = 0

    @property
    def total(self) -> int:
        """All connections, including those outside the pools."""
        return int(sum(astuple(self))) + ALONE


LEAST: Final = Shares(pool=2, pages=1, front_pool=2, front_pages=1)
"""The least that the daemon can work with."""


def look(database: Database) -> Room:
    """Return how many connections are free. Raises `DatabaseUnavailableError`."""
    with database.connection() as connection:
        row = connection.execute(_LOOK).fetchone()
    if row is None:  # the role was dropped meanwhile
        return Room(free=0, narrowest="the server's max_connections")
    most, reserved, superuser, of_role, of_database, used, used_here, used_by_us = row
    limits = [(most - (0 if superuser else reserved) - used, f"max_connections = {most}")]
    if not superuser:
        if of_database >= 0:
            limits.append((of_database - used_here, f"the database's limit of {of_database}"))
        if of_role >= 0:
            limits.append((of_role - used_by_us, f"the user's limit of {of_role}"))
    free, narrowest = min(limits)
    return Room(free=free, narrowest=narrowest)


def divide(room: Room, wanted: Shares) -> Shares:
    """Give each part what it wants, or its share of what there is.

    Raises `DatabaseUnfitError` where there is too little to work with.
    """
    least = replace(LEAST, handlers=min(1, wanted.handlers))
    if room.free < least.total:
        raise DatabaseUnfitError(
            f"it has {max(0, room.free)} connections to give ({room.narrowest}), and "
            f"{least.total} are needed",
            "raise max_connections, the database's and the user's CONNECTION LIMIT, or end what "
            "uses them",
        )
    ours = max(least.total, room.free - max(2, room.free // LEFT))
    if wanted.total <= ours:
        return wanted
    # Connections beyond the least are shared in proportion to what is wanted.
    part = (ours - least.total) / (wanted.total - least.total)
    lows, highs = asdict(least), asdict(wanted)
    return Shares(**{name: low + int((highs[name] - low) * part) for name, low in lows.items()})


def take_share(database: Database, wanted: Shares) -> Shares:
    """Look at the server's free connections, log them, and return each part's share.

    Raises `DatabaseUnavailableError`, `DatabaseUnfitError`.
    """
    room = look(database)
    try:
        shares = divide(room, wanted)
    except DatabaseUnfitError as error:
        raise error.of(database.where) from None
    say = log.info if shares == wanted else log.warning
    say(
        "database.connections",
        free=room.free,
        limited_by=room.narrowest,
        at_most=shares.total,
        wanted=wanted.total,
        pool=shares.pool,
    )
    return shares


def warn(database: Database) -> None:
    """Log server-wide settings that are unsafe and that the operator may not have meant."""
    try:
        with database.connection() as connection:
            rows = connection.execute(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) AND setting <> 'on'",
                [list(WARNED)],
            ).fetchall()
    except psycopg.Error as error:
        log.warning("database.not_looked_at", error=one_line(error))
        return
    for name, value in rows:
        log.warning("database.warning", setting=name, value=value, means=WARNED[name])
