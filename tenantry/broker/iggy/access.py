"""An Iggy server's address and a user, read from `iggy://user:password@host:port`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from tenantry.urls import address, iggy_url

PORT: Final = 8090
"""The port of Iggy's own protocol over TCP; its HTTP API is not used."""

SECURE: Final = "iggys"
"""The scheme of a server with TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A server's address, and a user of it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    secure: bool = False
    ca_file: str = ""
    """The authority to trust, a PEM file; empty: those that the client library trusts."""
    source: str = "broker.url"
    """The setting that the URL is from, for messages."""

    @classmethod
    def of(cls, url: str, *, ca_file: str = "", source: str = "broker.url") -> Self:
        """Read a URL; without a user it means Iggy's root user with its initial password."""
        parts = urlsplit(url)
        return cls(
            host=parts.hostname or "",
            port=parts.port or PORT,
            user=unquote(parts.username or "iggy"),
            password=unquote(parts.password or "iggy"),
            secure=parts.scheme == SECURE,
            ca_file=ca_file,
            source=source,
        )

    @property
    def where(self) -> str:
        """HOST:PORT."""
        return address(self.host, self.port)

    def url_for(self, user: str, password: str) -> str:
        """Return the URL for another user."""
        scheme = SECURE if self.secure else "iggy"
        return iggy_url(scheme=scheme, user=user, password=password, host=self.host, port=self.port)
