"""Users with a tenant's permissions on RabbitMQ, for a proof of isolation."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Final

from tenantry.broker.port import BrokerError, Credentials, Excess, Probe
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.domain import names
from tenantry.domain.names import UserKind

_PREFIX: Final = "tenantry_probe_"


class RabbitProbes:
    """Probes (`Probes`) on RabbitMQ.

    A probe has the permissions and tags that the tenant's user has now, whoever granted them. Users
    belong to the whole broker: a probe carries our mark.
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
            if user["name"].startswith(_PREFIX) and self._administration.mark in user["tags"]:
                self._management.delete_user(user["name"])

    def several(self) -> AbstractContextManager[None]:
        """See `Probes.several`."""
        return nullcontext()

    @contextmanager
    def probe(self, tenant_id: str) -> Iterator[Probe]:
        """See `Probes.probe`."""
        with ExitStack() as stack:
            sender = self._in_place_of(tenant_id, UserKind.PRODUCER, stack)
            if sender is None:
                own = names.username(tenant_id)
                raise BrokerError(
                    f"user {own!r} is not there, or has no rights in the virtual host"
                )
            yield Probe(sender, self._in_place_of(tenant_id, UserKind.CONSUMER, stack))

    def _in_place_of(self, tenant_id: str, kind: UserKind, stack: ExitStack) -> Credentials | None:
        """Make a probe user with the present rights of the tenant's user of a kind, if any."""
        own = names.username(tenant_id, kind)
        user = self._administration.find(own)
        if user is None or user.permissions is None:
            return None
        if self._administration.is_anothers(user):
            raise BrokerError(f"user {own!r} is another installation's")
        probe = _PREFIX + secrets.token_hex(8)
        credentials, hashed = self._administration.new_credentials(tenant_id, kind)
        url = credentials.amqp_url.replace(f"//{own}:", f"//{probe}:", 1)
        tags = sorted({*user.tags, self._administration.mark})
        stack.callback(self._management.delete_user, probe)
        self._management.put_user(probe, hashed.value, tags=tags)
        self._management.put_permissions(probe, **user.permissions._asdict())
        return replace(credentials, username=probe, amqp_url=url)

    def excess(self, tenant_id: str) -> Sequence[Excess]:  # noqa: ARG002
        """See `Probes.excess`: every right can be tried."""
        return ()
