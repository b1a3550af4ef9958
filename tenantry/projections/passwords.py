"""Confirms pending passwords, in the transaction that records what they were made for."""

from __future__ import annotations

from collections.abc import Sequence

from tenantry.database.pool import Connection
from tenantry.domain import names
from tenantry.domain.events import CredentialsRotated, TenantProvisioned
from tenantry.journal.port import RecordedEvent
from tenantry.journal.tenants import TENANT_CATEGORY
from tenantry.sql import queries


class PasswordConfirmation:
    """Give it to the event store as an inline projection.

    So that a password is confirmed exactly when the journal says that the tenant has it: neither
    of them alone, whenever the daemon dies.
    """

    def __init__(self) -> None:
        self._sql = queries("tenants")

    def concerns(self, stream: str) -> bool:
        """Tell whether events of this stream may confirm a password."""
        return names.category(stream) == TENANT_CATEGORY

    def apply(self, connection: Connection, recorded: Sequence[RecordedEvent]) -> None:
        """Confirm what is pending of the tenants that the events say have a new password."""
        if ids := [one.event.tenant_id for one in recorded if confirms(one)]:
            connection.execute(self._sql["confirm_credentials"], {"ids": ids})


def confirms(recorded: RecordedEvent) -> bool:
    """Tell whether an event says that a tenant has a new password."""
    return isinstance(recorded.event, TenantProvisioned | CredentialsRotated)
