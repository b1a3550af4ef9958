"""The settings that every session of the daemon pins, whatever database, role, server or URL say.

PostgreSQL gives a session the defaults that were set for the database, for the role or in
postgresql.conf; libpq adds the environment's. Each setting that a session can inherit is pinned
here, required here, or harmless: docs/postgresql.md has the reasons, and a test compares it with
the settings that the running server has.

A pooler in transaction mode keeps nothing of a session: no setting, no LISTEN, no lock, no prepared
statement. Such a pooler is detected by a mark that a session sets, and does not find again once the
pooler has served another session in between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from psycopg import sql

from tenantry.database.errors import DatabaseUnfitError

SEARCH_PATH: Final = "pg_catalog, pg_temp"
"""The search path of the daemon's sessions: no schema that another role may create in. If pg_temp
were left out, PostgreSQL would search it first."""

PINNED: Final[Mapping[str, str]] = {
    # Confirmed data is on disk, here and on the standbys that have to confirm.
    "synchronous_commit": "on",
    # Locks are taken first, and later statements must see all commits from before the grant.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    # Which names, which rows, which tables.
    "search_path": SEARCH_PATH,
    "row_security": "on",
    "default_table_access_method": "heap",
    "check_function_bodies": "on",
    # How texts are read and written.
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    # When a session ends, and what it says.
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "client_min_messages": "notice",
    # Plans are made anew where that is better, as the queries were measured.
    "plan_cache_mode": "auto",
    # A statement takes one processor: tenants' messages wait for the others.
    "max_parallel_workers_per_gather": "0",
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
}
"""Values by setting, in force in every session; database.url may not choose others."""

NEWER: Final[Mapping[str, tuple[int, str]]] = {
    "createrole_self_grant": (160000, ""),
    "transaction_timeout": (170000, "0"),
}
"""The same for settings that exist since a server version, as libpq numbers it."""

REQUIRED: Final[Mapping[str, str]] = {
    # Without triggers neither the journal nor the term is guarded.
    "session_replication_role": "origin",
    # Unreadable rows would be skipped, as if they had never existed.
    "zero_damaged_pages": "off",
    "ignore_checksum_failure": "off",
}
"""Settings that only a superuser may change; a session with another value is not used."""

LIMITS: Final = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)
"""Limits that the `options` of database.url may override."""

ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "synchronous_commit": frozenset({"on", "remote_apply"}),
}
"""Values of pinned settings that database.url may choose, as they are no weaker."""

MARK: Final = "tenantry.session"
"""The setting that holds a session's mark."""

_OPTION: Final = re.compile(r"(?:-c\s*|--)((?:[^\s=\\]|\\.)+)=((?:[^\s\\]|\\.)*)")

OLDEST_SERVER: Final = 140000
ENCODING: Final = "UTF8"

LOOK: Final = (
    "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('{mark}', true),"
    " pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('server_encoding'), {required}"
).format(
    mark=MARK,
    required=", ".join(f"pg_catalog.current_setting('{name}', true)" for name in REQUIRED),
)
"""The query whose one row `judge` takes."""

READ_MARK: Final = f"SELECT pg_catalog.current_setting('{MARK}', true)"


def asked_for(options: str) -> dict[str, str]:
    """Return the settings that a URL's `options` ask for, by lower-case name."""
    found = {}
    for name, value in _OPTION.findall(options):
        plain = re.sub(r"\\(.)", r"\1", value)
        found[re.sub(r"\\(.)", r"\1", name).replace("-", "_").lower()] = plain.strip("'\"")
    return found


def contradiction(options: str) -> str | None:
    """Name a pinned setting that `options` contradict; None where there is none."""
    ours = {name.lower(): value for name, value in PINNED.items()}
    ours |= {name: value for name, (_, value) in NEWER.items()}
    for name, value in asked_for(options).items():
        # Handlers may have their own search_path; the pinned one is for the daemon's statements.
        if name not in ours or name in LIMITS or name == "search_path":
            continue
        allowed = ALLOWED.get(name, frozenset({ours[name]}))
        if value.lower().replace(" ", "") not in {one.lower().replace(" ", "") for one in allowed}:
            return name
    return None


def pins(limits: Mapping[str, str], options: str, *, read_only: bool = False) -> dict[str, str]:
    """Return a session's settings: pins and `limits`, except where `options` may override."""
    chosen = asked_for(options)
    ours = {**PINNED, **limits}
    if read_only:
        ours["default_transaction_read_only"] = "on"
    keep = {*LIMITS, *ALLOWED} & set(chosen)
    return {name: value for name, value in ours.items() if name not in keep}


def as_options(settings: Mapping[str, str]) -> str:
    """Format settings as startup `options`, so that RESET returns to them as well."""
    escaped = {name: re.sub(r"([\\\s])", r"\\\1", value) for name, value in settings.items()}
    return " ".join(f"-c {name}={value}" for name, value in escaped.items())


def as_statements(settings: Mapping[str, str], options: str, *, server_version: int) -> bytes:
    """Format settings as statements, which pass every pooler; add those of a newer server.

    The statements contain no name to be looked up, so that no search_path applies to them.
    """
    chosen = asked_for(options)
    newer = {
        name: value
        for name, (since, value) in NEWER.items()
        if server_version >= since and not (name in LIMITS and name in chosen)
    }
    lines = [_set(name, value) for name, value in {**settings, **newer}.items()]
    return "; ".join(lines).encode()


def _set(name: str, value: str) -> str:
    quoted = ".".join(f'"{part}"' for part in name.split("."))
    if name.lower() == "search_path":
        # A list: as one literal it would be one schema's name.
        value_list = ", ".join(sql.quote(part.strip()) for part in value.split(","))
        return f"SET {quoted} = {value_list}"
    return f"SET {quoted} = {sql.quote(value)}"


def too_old(server_version: int) -> DatabaseUnfitError | None:
    """Return an error if the server's version (libpq's number) is too old, else None."""
    if server_version >= OLDEST_SERVER:
        return None
    return DatabaseUnfitError(
        f"the server is PostgreSQL {server_version // 10000}, which is too old",
        f"tenantry needs PostgreSQL {OLDEST_SERVER // 10000} or newer: upgrade it",
    )


def judge(row: Sequence[Any], *, mark: str, read_only: bool) -> DatabaseUnfitError | None:
    """Return what is wrong with a session, by the row of `LOOK`; None if nothing is."""
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
        # Not permanent: a failover may be under way, and ends with a primary.
        return DatabaseUnfitError(
            "the server is a standby, in which nothing can be written",
            "let database.url name the primary, or all hosts and target_session_attrs=read-write",
            permanent=False,
        )
    return None


def pooled_by_transaction() -> DatabaseUnfitError:
    """Return the error for a pooler that drops session state between transactions."""
    return DatabaseUnfitError(
        "a pooler stands before it that gives the connection to others after each transaction",
        "set pool_mode = session for this database there, or let database.url lead to PostgreSQL "
        "itself",
    )
