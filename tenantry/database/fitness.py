"""Whether a session can be worked in: what it says of itself, and whether its state lasts.

A pooler that gives a server's connection to another client after each transaction keeps nothing of
a session: no setting, no LISTEN, no lock, no prepared statement. It shows by a mark that a session
puts on itself, and does not find again once another has been served in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tenantry.database.errors import DatabaseUnfitError
from tenantry.database.session import MARK, REQUIRED

OLDEST_SERVER: Final = 140000
ENCODING: Final = "UTF8"

LOOK: Final = (
    "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('{mark}', true),"
    " pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('server_encoding'), {required}"
).format(
    mark=MARK,
    required=", ".join(f"pg_catalog.current_setting('{name}', true)" for name in REQUIRED),
)
"""What `judge` judges by: one row."""

READ_MARK: Final = f"SELECT pg_catalog.current_setting('{MARK}', true)"


def too_old(server_version: int) -> DatabaseUnfitError | None:
    """Say that a server is too old, by libpq's number of its version, or None."""
    if server_version >= OLDEST_SERVER:
        return None
    return DatabaseUnfitError(
        f"the server is PostgreSQL {server_version // 10000}, which is too old",
        f"tenantry needs PostgreSQL {OLDEST_SERVER // 10000} or newer: upgrade it",
    )


def judge(row: Sequence[Any], *, mark: str, read_only: bool) -> DatabaseUnfitError | None:
    """Say what is wrong with a session, by the row of `LOOK`; None if nothing is."""
    _, found, standby, encoding, *required = row
    if found != mark:
        return pooled_by_transaction()
    if encoding != ENCODING:
        return DatabaseUnfitError(
            f"the database's encoding is {encoding}, in which not every message can be stored",
            "make one for it: createdb --template=template0 --encoding=UTF8 --locale=C NAME",
        )
    for (name, wanted), value in zip(REQUIRED.items(), required, strict=True):
        if value not in (None, wanted):
            return DatabaseUnfitError(
                f"{name} is {value} for this user or database, and data would be lost with it",
                f"find it in pg_db_role_setting or postgresql.conf and take it back: {name} must "
                f"be {wanted}",
            )
    if standby and not read_only:
        # A failover that is under way ends: then there is a primary.
        return DatabaseUnfitError(
            "the server is a standby, in which nothing can be written",
            "let database.url name the primary, or all hosts and target_session_attrs=read-write",
            permanent=False,
        )
    return None


def pooled_by_transaction() -> DatabaseUnfitError:
    """Say that a session loses its state between transactions."""
    return DatabaseUnfitError(
        "a pooler stands before it that gives the connection to others after each transaction",
        "set pool_mode = session for this database there, or let database.url lead to PostgreSQL "
        "itself",
    )
