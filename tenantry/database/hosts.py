"""The servers of a database that has several: a primary, and standbys that may become it.

libpq tries them from the first to the last for every connection. A silent server would cost each
connection its whole `connect_timeout`, and a former primary that comes back would be found before
the present one. So the server that accepted the last connection is tried first.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from psycopg import pq

from tenantry.database.conninfo import PORT


class Place(NamedTuple):
    """The address of one server, by libpq's parameters; empty ones are not given."""

    host: str
    hostaddr: str
    port: str

    def parameters(self) -> dict[str, str]:
        """Give the parameters that lead to this server alone."""
        return {name: value for name, value in self._asdict().items() if value}


def place_of(pgconn: pq.abc.PGconn) -> Place:
    """Give the server that a connection has reached."""
    return Place(pgconn.host.decode(), pgconn.hostaddr.decode(), pgconn.port.decode())


class Hosts:
    """The servers named by the parameters of database.url. Safe to use from any thread."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._guard = threading.Lock()
        self._places = _named(parameters)

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

    def prefer(self, found: Place) -> None:
        """Try a server that has accepted a connection first from now on."""
        if not self.several:
            return
        with self._guard:
            self._places.sort(key=lambda one: not _is(one, found))


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
