"""Addresses of databases, from connection parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, urlencode

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
    name = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or ""
    query: dict[str, str] = {key: given[key] for key in _CARRIED if key in given}
    place = ""
    if all(hosts) and not any(host.startswith(("/", "@")) for host in hosts):
        place = ",".join(
            f"{_bracketed(host)}:{port}" for host, port in zip(hosts, ports, strict=True)
        )
    else:
        query |= {"host": ",".join(hosts)} if all(hosts) else {}
        query |= {"port": ",".join(ports)}
    who = f"{quote(user, safe='')}:{quote(password, safe='')}"
    rest = f"?{urlencode(query, safe='/,')}" if query else ""
    return f"postgresql://{who}@{place}/{quote(name, safe='')}{rest}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
