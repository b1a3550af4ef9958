"""Who may do what in the database: only our own code has the schema owner's rights, and PUBLIC few.

What is open is closed where that is ours to do, or else named.
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
    """Tell whether the schema is new enough for the rest of this."""
    row = connection.execute("SELECT to_regprocedure(%s)", [_CLOSER]).fetchone()
    return row is not None and row[0] is not None


def close_paths(connection: Connection) -> None:
    """Close the search path of every function of the schema that is ours and was left open."""
    connection.execute(f"SELECT {_CLOSER}".encode())


def open_paths(connection: Connection) -> list[str]:
    """Name the schema's functions whose search path is open, a hundred at most."""
    return [name for (name,) in connection.execute(queries("catalogue")["open_paths"])]


def strangers(connection: Connection) -> list[str]:
    """Name what of others the schema holds or calls, each with its owner, a hundred at most."""
    rows = connection.execute(queries("catalogue")["strangers"])
    return [f"{thing}, which is {owner}'s" for thing, owner in rows]


def refuse_strangers(connection: Connection) -> None:
    """Raise `OpenSchemaError` where code of another owner would run with our rights."""
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
