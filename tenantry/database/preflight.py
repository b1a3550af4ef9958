"""Checks whether the schema can be created in a database, before anything is created there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from psycopg.rows import dict_row

from tenantry.database.errors import DatabaseUnfitError
from tenantry.database.pool import Connection

Found: TypeAlias = Mapping[str, Any]
"""The result row of `look`, by column name."""

MESSAGES: Final = 2
"""The migration that makes `public.messages`."""

_LOOK: Final = """
SELECT history.exists AS history, history.columns = 3 AS history_is_ours,
       schema.oid IS NOT NULL AS schema,
       (SELECT count(*) FROM pg_class AS c WHERE c.relnamespace = schema.oid)
         + (SELECT count(*) FROM pg_proc AS p WHERE p.pronamespace = schema.oid) AS objects,
       coalesce(has_schema_privilege(schema.oid, 'CREATE')
         AND has_schema_privilege(schema.oid, 'USAGE'), false) AS in_schema,
       coalesce(pg_get_userbyid(schema.nspowner), '') AS owner,
       has_database_privilege(current_database(), 'CREATE') AS in_database,
       to_regnamespace('public') IS NOT NULL AS public,
       coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE')
         AND has_schema_privilege(to_regnamespace('public')::oid, 'USAGE'), false) AS in_public,
       EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE n.nspname = 'public' AND c.relname = 'messages') AS messages,
       EXISTS (SELECT FROM pg_language WHERE lanname = 'plpgsql') AS plpgsql,
       to_regnamespace('tenantry_fence') IS NOT NULL AS gate,
       current_user::text AS user, current_database()::text AS name
FROM (VALUES (0)) AS one
LEFT JOIN pg_namespace AS schema ON schema.nspname = 'tenantry'
CROSS JOIN LATERAL (
    SELECT count(*) > 0 AS exists,
           count(a.attname) AS columns
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a
      ON a.attrelid = c.oid AND a.attname IN ('number', 'name', 'checksum') AND NOT a.attisdropped
    WHERE c.relnamespace = schema.oid AND c.relname = 'schema_migrations'
) AS history
"""

_SCHEMAS: Final = """
SELECT n.nspname::text, pg_get_userbyid(n.nspowner),
       r.rolsuper OR r.rolname = current_user OR r.oid = d.datdba OR (%(ours)s AND r.oid = (
            SELECT o.nspowner FROM pg_namespace AS o WHERE o.nspname = 'tenantry')),
       has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'),
       (SELECT count(*) FROM pg_class AS c WHERE c.relnamespace = n.oid AND NOT (%(ours)s AND (
            (c.relname ~ '^(migrations|terms|node_[0-9]+)$' AND c.relkind = 'r' AND c.relnatts = 0)
            OR (c.relname ~ '^remembered_[0-9]$' AND c.relkind = 'r')
            OR (c.relname ~ '^remembered_[0-9]_tenant_low_idx$' AND c.relkind = 'i'))))
         + (SELECT count(*) FROM pg_proc AS p WHERE p.pronamespace = n.oid),
       current_user::text
FROM pg_namespace AS n
JOIN pg_roles AS r ON r.oid = n.nspowner
JOIN pg_database AS d ON d.datname = current_database()
WHERE n.nspname IN ('tenantry', 'tenantry_fence') ORDER BY 1
"""
"""The owners of the daemon's schemas. A schema's owner can create functions in it, and can name,
and so lock, the tables in it."""


def look(connection: Connection) -> Found:
    """Look at the database; raise `DatabaseUnfitError` if the migrations' table is foreign."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_LOOK).fetchone()
    assert found is not None  # noqa: S101 - a query without a condition
    if found["history"] and not found["history_is_ours"]:
        raise _schema_taken(found)
    return found


def refuse_unfit(connection: Connection, found: Found, *, applied: frozenset[int]) -> None:
    """Raise `DatabaseUnfitError` where the migrations beyond `applied` would fail half-way.

    Another owner's object has one of the daemon's names, or the user lacks the right to create.
    """
    unfit = (
        _taken(found, applied)
        or _not_allowed(found, applied)
        or _owned(connection, bool(found["history"]))
    )
    if unfit is not None:
        raise unfit


def _taken(found: Found, applied: frozenset[int]) -> DatabaseUnfitError | None:
    if found["schema"] and not found["history"] and found["objects"]:
        return _schema_taken(found)
    if found["messages"] and MESSAGES not in applied:
        return DatabaseUnfitError(
            "there is a table public.messages already, which is somebody else's",
            "rename it, or give tenantry a database of its own",
        )
    return None


def _schema_taken(found: Found) -> DatabaseUnfitError:
    return DatabaseUnfitError(
        f"there is a schema tenantry already, {found['owner']}'s, and it is not this program's",
        "rename it, or give tenantry a database of its own",
    )


def _not_allowed(found: Found, applied: frozenset[int]) -> DatabaseUnfitError | None:
    user = found["user"]
    if not (found["schema"] and found["gate"]) and not found["in_database"]:
        return DatabaseUnfitError(
            f"user {user} may not create schemas in it",
            f'make {user} its owner, or GRANT CREATE ON DATABASE "{found["name"]}" TO "{user}"',
        )
    if applied:
        return None
    if not found["plpgsql"]:
        return DatabaseUnfitError(
            "it has no PL/pgSQL, which every new database has", "CREATE EXTENSION plpgsql"
        )
    if not found["public"]:
        return DatabaseUnfitError("it has no schema public", "CREATE SCHEMA public")
    if found["schema"] and not found["in_schema"]:
        return DatabaseUnfitError(
            f"user {user} may not create tables in its schema tenantry",
            f'make {user} its owner, or GRANT CREATE, USAGE ON SCHEMA tenantry TO "{user}"',
        )
    if not found["in_public"]:
        return DatabaseUnfitError(
            f"user {user} may not create tables in its schema public",
            f'GRANT CREATE, USAGE ON SCHEMA public TO "{user}"',
        )
    return None


def _owned(connection: Connection, history_is_ours: bool) -> DatabaseUnfitError | None:
    rows = connection.execute(_SCHEMAS, {"ours": history_is_ours})
    for schema, owner, owner_will_do, allowed, objects, user in rows:
        if schema == "tenantry_fence" and (objects or not owner_will_do or not allowed):
            return DatabaseUnfitError(
                f"there is a schema {schema} already, {owner}'s, and it is not this program's",
                "rename or drop it: this program makes its own",
            )
        if not owner_will_do:
            return DatabaseUnfitError(
                f"its schema {schema} is {owner}'s, who could have code run as {user}",
                f'ALTER SCHEMA {schema} OWNER TO "{user}"',
            )
    return None
