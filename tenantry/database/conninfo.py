"""Addresses of databases, from connection parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from psycopg.pq.abc import PGconn

from tenantry.urls import postgres_url

PORT: Final = "5432"

CARRIED: Final[tuple[str, ...]] = (
    "hostaddr",
    "connect_timeout",
    "gssencmode",
    "krbsrvname",
    "sslmode",
    "sslrootcert",
    "sslnegotiation",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "channel_binding",
)
"""Parameters that any user needs for the same way in, and no more than that.

How the server is authenticated is the same for all users; what authenticates us (certificates,
keys, passwords, service files, `require_auth`) is ours, and so is what our sessions are like
(`options`).
"""

FROM_ELSEWHERE: Final[tuple[str, ...]] = ("host", "port", "dbname", *CARRIED[2:])
"""What a service file or the environment may say where database.url does not."""


def resolved(parameters: Mapping[str, object], pgconn: PGconn) -> dict[str, object]:
    """Give the parameters with what a connection by them has found elsewhere."""
    found = {
        one.keyword.decode(): one.val.decode()
        for one in pgconn.info
        if one.val and one.val != one.compiled
    }
    # Several hosts are tried one by one: the connection knows of its own only.
    found |= {
        name: os.environ[variable]
        for name, variable in (("host", "PGHOST"), ("port", "PGPORT"))
        if os.environ.get(variable)
    }
    if not parameters.get("hostaddr"):
        found.setdefault("host", pgconn.host.decode())
    return {name: found[name] for name in FROM_ELSEWHERE if name in found} | {
        name: value for name, value in parameters.items() if value not in (None, "")
    }


def url_for(parameters: Mapping[str, object], user: str, password: str) -> str:
    """Give the URL by which a user reaches the database that `parameters` (libpq's) lead to."""
    given = {name: str(value) for name, value in parameters.items() if value not in (None, "")}
    named = given.get("host") or os.environ.get("PGHOST")
    hosts = (named or given.get("hostaddr") or "").split(",")
    ports = (given.get("port") or os.environ.get("PGPORT") or PORT).split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    carried = {key: given[key] for key in CARRIED if key in given}
    if carried.get("sslrootcert", "system") != "system":
        carried["sslrootcert"] = str(Path(carried["sslrootcert"]).absolute())
    if not named:
        carried.pop("hostaddr", None)
    if len(hosts) > 1 and "target_session_attrs" in given:
        wanted = given["target_session_attrs"]
        # `read-write` looks at what the session may do: a user that may only read, and whose
        # sessions are read-only by default, finds none.
        carried["target_session_attrs"] = "primary" if wanted == "read-write" else wanted
    return postgres_url(
        user=user,
        password=password,
        hosts=list(zip(hosts, ports, strict=True)),
        database=given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "",
        parameters=carried,
    )
