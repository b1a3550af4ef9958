"""The URLs that this program gives out: clients read back the same parts, whatever they contain.

All such URLs are built here. Every part is percent-encoded as UTF-8, a space as %20: the `+` of
HTML forms is a plus sign to libpq and to AMQP clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

AMQP: Final = ("amqp", "amqps")
IGGY: Final = ("iggy", "iggys")
"""The schemes of brokers' URLs, plain and encrypted."""

T = TypeVar("T")

_SOCKETS: Final = ("/", "@")
"""First characters of a PostgreSQL host that is a Unix socket's directory or abstract name."""


def quoted(text: str) -> str:
    """Percent-encode every reserved character of a text."""
    return quote(text, safe="")


def bracketed(host: str) -> str:
    """Return a host as written before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def address(host: str, port: int | str | None) -> str:
    """Give HOST:PORT, or the host alone without a port."""
    return bracketed(host) + ("" if port in (None, "") else f":{port}")


def amqp_url(
    *,
    scheme: str,
    user: str,
    password: str,
    host: str,
    port: int,
    vhost: str,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """Give an AMQP URL (`scheme` is amqp or amqps), with `parameters` as its query."""
    who = f"{quoted(user)}:{quoted(password)}"
    return f"{scheme}://{who}@{address(host, port)}/{quoted(vhost)}{_query(parameters or {})}"


def iggy_url(*, scheme: str, user: str, password: str, host: str, port: int) -> str:
    """Give an Iggy URL (`scheme` is iggy or iggys)."""
    return f"{scheme}://{quoted(user)}:{quoted(password)}@{address(host, port)}"


def postgres_url(
    *,
    user: str,
    password: str | None = None,
    hosts: Sequence[tuple[str, str]] = (),
    database: str,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """Give a PostgreSQL URL; `hosts` are (host, port), tried in this order, `parameters` libpq's.

    A host that is a path is a Unix socket's directory, an empty host the client's default. libpq
    separates hosts by commas, and has no way to escape one.
    """
    query: dict[str, str] = {}
    place = ""
    names, ports = [host for host, _ in hosts], [port for _, port in hosts]
    if all(names) and not any(name.startswith(_SOCKETS) for name in names):
        place = ",".join(address(_encoded(name), port) for name, port in hosts)
    else:
        query |= {"host": ",".join(names)} if any(names) else {}
        query |= {"port": ",".join(ports)} if any(ports) else {}
    who = quoted(user) + ("" if password is None else f":{quoted(password)}")
    return f"postgresql://{who}@{place}/{quoted(database)}{_query(query | dict(parameters or {}))}"


def split(url: str) -> SplitResult:
    """Split a URL as `urlsplit` does, also with several HOST:PORT.

    With several, all but older versions of `urlsplit` refuse an address in brackets. The caller
    checks each HOST:PORT.
    """
    scheme, there, rest = url.partition("://")
    end = next((at for at, one in enumerate(rest) if one in "/?#"), len(rest))
    netloc = rest[:end]
    if not there or "," not in netloc:
        return urlsplit(url)
    return urlsplit(f"{scheme}://{rest[end:]}")._replace(netloc=netloc)


def without_user(url: str) -> str:
    """Give a URL without user and password."""
    parts = split(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def at_address(url: str, place: str) -> str:
    """Give a URL with another HOST:PORT, and everything else unchanged."""
    parts = split(url)
    who, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{who}{at}{place}"))


def alternatives(url: str) -> tuple[str, ...]:
    """Split a URL with several HOST:PORT into one URL for each; give any other URL as it is."""
    try:
        places = split(url).netloc.rpartition("@")[2].split(",")
    except ValueError:
        return (url,)  # its reader reports the error
    return tuple(at_address(url, place) for place in places) if len(places) > 1 else (url,)


class Alternatives(Generic[T]):
    """Alternatives of which one is used until it fails, then the next. Callable from any thread."""

    def __init__(self, those: Sequence[T]) -> None:
        self._those = tuple(those)
        self._current = 0

    @property
    def current(self) -> T:
        """The alternative in use."""
        return self._those[self._current]

    def __len__(self) -> int:
        return len(self._those)

    def __iter__(self) -> Iterator[T]:
        return iter(self._those)

    def failed(self, one: T) -> None:
        """Note that an alternative has failed; another caller may have done so already."""
        if self.current is one:
            self._current = (self._current + 1) % len(self._those)


def _encoded(host: str) -> str:
    return quote(host, safe=":")  # keeps the colons of an IPv6 address, which is in brackets


def _query(parameters: Mapping[str, str]) -> str:
    pairs = (f"{quoted(name)}={quote(value, safe='/,')}" for name, value in parameters.items())
    text = "&".join(pairs)
    return f"?{text}" if text else ""
