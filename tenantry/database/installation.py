"""The name of an installation: one database, and the daemons that run on it."""

from __future__ import annotations

import secrets
from typing import Final

import psycopg
import structlog

from tenantry.database.errors import DatabaseError
from tenantry.database.pool import Connection, Database
from tenantry.sql import queries

log = structlog.get_logger(__name__)

_ADJECTIVES: Final = (
    "amber bold brave brisk calm clear deep eager early fair fresh gentle grand green keen kind "
    "light lucky mild noble plain proud quick quiet rapid ready sharp silver steady swift warm wise"
)
_NOUNS: Final = (
    "alder badger beech birch cedar crane curlew elder falcon finch hazel heron ibis juniper kite "
    "lark linden lynx maple marten oak osprey otter plover poplar raven rowan sorrel stork swan "
    "willow wren"
)


def find_installation(database: Database) -> str:
    """Return the installation's name; the first start creates it.

    A copy of a database beside its original, on the same server, gets a name of its own; a
    database that has moved to another server keeps its name, and the log says so.
    Raises `DatabaseError`.
    """
    sql = queries("installation")
    with database.connection() as connection, connection.transaction():
        here = connection.execute(sql["here"]).fetchone()
        if here is None:
            raise RuntimeError("a database without a number")
        parameters = {"name": _made_up(), "database": here[0], "server": here[1]}
        connection.execute(sql["make"], parameters)
        found = connection.execute(sql["find"]).fetchone()
        if found is None:
            raise RuntimeError("the installation has no name")
        name, oid, server = found
        if (oid, server) != (here[0], here[1]):
            name = _moved(connection, name, parameters, found)
    return str(name)


def common_cursor_key(database: Database, own: bytes) -> bytes:
    """Return the key that all nodes seal cursors with; the first node's own becomes the key."""
    sql = queries("installation")
    with database.connection() as connection:
        row = connection.execute(sql["keep_cursor_key"], {"key": own}).fetchone()
    return own if row is None else bytes(row[0])


def known_cursor_key(database: Database) -> bytes | None:
    """Return that key without setting it; None where there is none, or it can't be read."""
    try:
        with database.connection() as connection:
            row = connection.execute(queries("installation")["cursor_key"]).fetchone()
    except (DatabaseError, psycopg.Error):  # away, or of an earlier version
        return None
    return None if row is None or row[0] is None else bytes(row[0])


def _moved(
    connection: Connection, name: str, parameters: dict[str, object], found: tuple[object, ...]
) -> str:
    """Settle the installation's name in a database other than the one it was created in."""
    sql = queries("installation")
    made = {"made_in": found[1], "made_on": found[2]}
    original = connection.execute(sql["original"], parameters | made).fetchone()
    if original is None:
        log.warning(
            "installation.moved",
            installation=name,
            remedy="should the database it came from still be in use, see docs/installations.md",
        )
        connection.execute(sql["settle"], {**parameters, "name": name})
        return name
    # The listed roles belong to the original, which goes on using them.
    connection.execute(sql["disown_roles"])
    connection.execute(sql["settle"], parameters)
    log.warning(
        "installation.copied",
        installation=parameters["name"],
        original=name,
        original_database=original[0],
        remedy="tenants that both have are refused here wherever they share a server",
    )
    return str(parameters["name"])


def _made_up() -> str:
    words = (*map(secrets.choice, (_ADJECTIVES.split(), _NOUNS.split())), secrets.token_hex(2))
    return "-".join(words)
