"""Addresses of databases, from connection parameters, and the order in which several are tried.

libpq tries the servers of a database from the first to the last for every connection. A silent
server would cost each connection its whole `connect_timeout`, and a former primary that comes back
would be found before the present one. So the server that accepted the last connection is tried
first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

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
"""The parameters that any user needs to reach the same server, and no others.

How the server is authenticated is the same for all users. What authenticates the daemon's own user
(certificates, keys, passwords, service files, `require_auth`) and what shapes its sessions
(`options`) is not passed on.
"""

FROM_ELSEWHERE: Final[tuple[str, ...]] = ("host", "port", "dbname", *CARRIED[2:])
"""Parameters that a service file or the environment may supply where database.url does not."""


def resolved(parameters: Mapping[str, object], pgconn: PGconn) -> dict[str, object]:
    """Return the parameters, completed by those that libpq found elsewhere."""
    found = {
        one.keyword.decode(): one.val.decode()
        for one in pgconn.info
        if one.val and one.val != one.compiled
    }
    # Several hosts are tried one by one: the connection knows only the one that it reached.
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
    """Return a user's URL of the database that libpq's `parameters` lead to."""
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
        # `read-write` asks whether the session may write: a read-only user, whose sessions are
        # read-only by default, would find no server.
        carried["target_session_attrs"] = "primary" if wanted == "read-write" else wanted
    return postgres_url(
        user=user,
        password=password,
        hosts=list(zip(hosts, ports, strict=True)),
        database=given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "",
        parameters=carried,
    )


class Place(NamedTuple):
    """The address of one server, by libpq's parameters; empty ones are not given."""

    host: str
    hostaddr: str
    port: str

    def parameters(self) -> dict[str, str]:
        """Give the parameters that lead to this server alone."""
        return {name: value for name, value in self._asdict().items() if value}


def place_of(pgconn: PGconn) -> Place:
    """Give the server that a connection has reached."""
    return Place(pgconn.host.decode(), pgconn.hostaddr.decode(), pgconn.port.decode())


class Hosts:
    """The servers named by the parameters of database.url. Safe to use from any thread."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._guard = threading.Lock()
        self._places = _named(parameters)
        self._changes = 0

    @property
    def several(self) -> bool:
        """Whether there is more than one server."""
        return len(self._places) > 1

    def parameters(self) -> dict[str, str]:
        """Give the parameters that name the servers, in the order in which to try them."""
        with self._guard:
            places = tuple(self._places)
        if len(places) < 2:
            return {}
        lists = zip(Place._fields, zip(*places, strict=True), strict=True)
        return {name: ",".join(values) for name, values in lists if any(values)}

    @property
    def changes(self) -> int:
        """How often another server came first than before."""
        return self._changes

    def prefer(self, found: Place, changes: int) -> bool:
        """Try this server, which has accepted a connection, first from now on.

        Returns False if another one came first since there were so many `changes`, when the
        connection was begun: a server that was frozen accepts what has waited for it all the time.
        """
        if not self.several:
            return True
        with self._guard:
            if changes != self._changes:
                return _is(self._places[0], found)
            before = list(self._places)
            self._places.sort(key=lambda one: not _is(one, found))
            self._changes += self._places != before
            return True


def _is(named: Place, found: Place) -> bool:
    # libpq reports the address as the host if no name was given.
    host = named.host or named.hostaddr
    same_address = not named.hostaddr or named.hostaddr == found.hostaddr
    return host == found.host and same_address and named.port == found.port


def _named(parameters: Mapping[str, Any]) -> list[Place]:
    """Read the servers; none if libpq shuffles them, or would refuse the parameters."""
    if parameters.get("load_balance_hosts") not in (None, "", "disable"):
        return []
    hosts, addresses, ports = (_list(parameters, name) for name in Place._fields)
    count = max(len(hosts), len(addresses))
    hosts, addresses = hosts or [""] * count, addresses or [""] * count
    ports = ports * count if len(ports) == 1 else ports or [PORT] * count
    if not len(hosts) == len(addresses) == len(ports) == count:
        return []
    return [
        Place(host, address, port or PORT)
        for host, address, port in zip(hosts, addresses, ports, strict=True)
    ]


def _list(parameters: Mapping[str, Any], name: str) -> list[str]:
    value = str(parameters.get(name) or "")
    return [one.strip() for one in value.split(",")] if value else []
