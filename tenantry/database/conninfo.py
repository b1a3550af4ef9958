"""Addresses of databases, from connection parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from tenantry.urls import postgres_url

PORT: Final = "5432"
_CARRIED: Final = ("sslmode", "sslrootcert", "target_session_attrs")
"""Parameters that any user needs for the same way in."""


def url_for(parameters: Mapping[str, object], user: str, password: str) -> str:
    """Give the URL by which a user reaches the database that `parameters` (libpq's) lead to."""
    given = {name: str(value) for name, value in parameters.items() if value not in (None, "")}
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST") or ""
    hosts = host.split(",")
    ports = (given.get("port") or os.environ.get("PGPORT") or PORT).split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    return postgres_url(
        user=user,
        password=password,
        hosts=list(zip(hosts, ports, strict=True)),
        database=given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "",
        parameters={key: given[key] for key in _CARRIED if key in given},
    )
