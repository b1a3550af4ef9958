"""Users in a tenant's place, for a proof: with the rights its own user has, and gone afterwards."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tenantry.broker.port import BrokerError, Credentials
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain import names


class RabbitProbes:
    """Probes (`Probes`) on RabbitMQ.

    A probe has the permissions and tags that the tenant's user has now, whoever gave them. Users
    are the whole broker's: a probe's name tells the virtual host, and so the daemon, it is of.
    """

    def __init__(self, administration: RabbitAdministration) -> None:
        self._administration = administration
        self._management = administration.management
        vhost = hashlib.sha256(administration.virtual_host.encode()).hexdigest()
        self._prefix = f"tenantry_probe_{vhost[:8]}_"

    @property
    def management_address(self) -> str:
        """See `Probes.management_address`."""
        return self._management.address

    def sweep(self) -> None:
        """See `Probes.sweep`."""
        for user in self._management.users():
            if user["name"].startswith(self._prefix):
                self._management.delete_user(user["name"])

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[Credentials]:
        """See `Probes.probe`."""
        own = names.username(tenant_id)
        tags = next((one["tags"] for one in self._management.users() if one["name"] == own), None)
        allowed = self._management.permissions().get(own)
        if tags is None or allowed is None:
            raise BrokerError(f"user {own!r} is not there, or has no rights in the virtual host")
        probe = self._prefix + secrets.token_hex(8)
        credentials, hashed = self._administration.new_credentials(tenant_id)
        url = credentials.amqp_url.replace(f"//{own}:", f"//{probe}:", 1)
        self._management.put_user(probe, hashed.value, tags=sorted(tags))
        try:
            configure, write, read = allowed
            self._management.put_permissions(probe, configure=configure, write=write, read=read)
            yield replace(credentials, username=probe, amqp_url=url)
        finally:
            self._management.delete_user(probe)
