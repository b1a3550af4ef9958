"""What tenants' roles have from PUBLIC: taken away where that is ours to do, or else named."""

from __future__ import annotations

from importlib import resources
from typing import Final

from psycopg import errors

from tenantry.database.pool import Connection
from tenantry.sql import queries

_TRIES: Final = 3


def take_from_public(connection: Connection) -> None:
    """Take from PUBLIC what no tenant needs, as far as the database's user may.

    In the catalogue itself only on the embedded server: on another, others may use what it gives.
    """
    row = connection.execute(queries("rights")["of_our_own"]).fetchone()
    files = ["rights_of_public"]
    if row is not None and row[0]:
        files.append("rights_in_the_catalogue")
    for name in files:
        text = resources.files("tenantry.sql").joinpath(f"{name}.sql").read_text("utf-8")
        for left in reversed(range(_TRIES)):
            try:
                connection.execute(text.encode())
            except errors.InternalError:
                # "tuple concurrently updated": another database's daemon does the same.
                if not left:
                    raise
            else:
                break


def open_to_tenants(connection: Connection) -> list[str]:
    """Say what else is open to every role, each with the statement that closes it."""
    rows = connection.execute(queries("rights")["open"])
    return [f"{what} ({remedy})" for what, remedy in rows]
