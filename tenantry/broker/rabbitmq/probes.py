"""Users in a tenant's place, for a proof: with the rights its own user has, and gone afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from tenantry.broker.port import BrokerError, Credentials
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain import names

_PREFIX: Final = "tenantry_probe_"


class RabbitProbes:
    """Probes (`Probes`) on RabbitMQ.

    A probe has the permissions and tags that the tenant's user has now, whoever gave them. Users
    are the whole broker's: a probe carries our mark.
    """

    def __init__(self, administration: RabbitAdministration) -> None:
        self._administration = administration
        self._management = administration.management

    @property
    def management_address(self) -> str:
        """See `Probes.management_address`."""
        return self._management.address

    def sweep(self) -> None:
        """See `Probes.sweep`."""
        for user in self._management.users():
            if user["name"].startswith(_PREFIX) and self._administration.users.mark in user["tags"]:
                self._management.delete_user(user["name"])

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[Credentials]:
        """See `Probes.probe`."""
        users = self._administration.users
        own = names.username(tenant_id)
        user = users.find(own)
        if user is None or user.permissions is None:
            raise BrokerError(f"user {own!r} is not there, or has no rights in the virtual host")
        if users.is_anothers(user):
            raise BrokerError(f"user {own!r} is another installation's")
        probe = _PREFIX + secrets.token_hex(8)
        credentials, hashed = self._administration.new_credentials(tenant_id)
        url = credentials.amqp_url.replace(f"//{own}:", f"//{probe}:", 1)
        self._management.put_user(probe, hashed.value, tags=sorted({*user.tags, users.mark}))
        try:
            configure, write, read = user.permissions
            self._management.put_permissions(probe, configure=configure, write=write, read=read)
            yield replace(credentials, username=probe, amqp_url=url)
        finally:
            self._management.delete_user(probe)
