"""Rights in the database: only the daemon's code has the schema owner's, and PUBLIC has few.

The daemon closes what it may close, and reports what else is open.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from psycopg import errors

from tenantry.database.errors import OpenSchemaError
from tenantry.database.pool import Connection
from tenantry.sql import queries

_CLOSER: Final = "tenantry.close_search_paths()"


def are_kept(connection: Connection) -> bool:
    """Tell whether the schema is new enough for the other functions of this module."""
    row = connection.execute("SELECT to_regprocedure(%s)", [_CLOSER]).fetchone()
    return row is not None and row[0] is not None


def close_paths(connection: Connection) -> None:
    """Close the search path of every function of the daemon's own in the schema."""
    connection.execute(f"SELECT {_CLOSER}".encode())


def open_paths(connection: Connection) -> list[str]:
    """Name the schema's functions whose search path is open, a hundred at most."""
    return [name for (name,) in connection.execute(queries("catalogue")["open_paths"])]


def strangers(connection: Connection) -> list[str]:
    """Name other owners' objects that the schema holds or calls, a hundred at most."""
    rows = connection.execute(queries("catalogue")["strangers"])
    return [f"{thing}, which is {owner}'s" for thing, owner in rows]


def refuse_strangers(connection: Connection) -> None:
    """Raise `OpenSchemaError` where another owner's code would run with the daemon's rights."""
    if found := strangers(connection):
        raise OpenSchemaError(
            f"the schema tenantry holds or calls {found[0]}"
            + (f", and {len(found) - 1} more like it" if found[1:] else "")
            + ": its code would run with the rights of the database's user; drop it, or make it"
            " the database user's own (ALTER ... OWNER TO) once you have read it"
        )
    if names := open_paths(connection):
        raise OpenSchemaError(
            f"{names[0]} has an open search path: others' functions could run in it with the"
            f" rights of the database's user; ALTER ROUTINE {names[0]}"
            " SET search_path = pg_catalog, pg_temp"
        )


_TRIES: Final = 3


def take_from_public(connection: Connection) -> None:
    """Revoke from PUBLIC what no tenant needs, as far as the database's user may.

    In the catalogue only on the embedded server: on another, other applications may need it.
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
    """List what else is open to every role, each with the statement that closes it."""
    rows = connection.execute(queries("rights")["open"])
    return [f"{what} ({remedy})" for what, remedy in rows]
