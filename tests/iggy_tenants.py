"""Tenants on Apache Iggy with users, as the provisioner makes them."""

from __future__ import annotations

import uuid

from tenantry.broker import drift
from tenantry.broker.iggy.client import Access, RefusedError, Session
from tenantry.broker.password_hashes import PostgresPasswordHashes
from tenantry.broker.port import PasswordHash, TenantTopology
from tenantry.broker.survey import DriftKind
from tests.brokers import Broker


class Provisioned:
    """A tenant with a user, as the provisioner makes one."""

    def __init__(self, broker: Broker, *topics: str, length: int = 20) -> None:
        assert broker.database is not None
        self.hashes = PostgresPasswordHashes(broker.database)
        self.administration = broker.administration
        tenant_id = f"t{uuid.uuid4().hex}".ljust(length, "x")[:length]
        made = TenantTopology(tenant_id=tenant_id, topics=topics, partitions=2)
        self.topology, self.id = made, made.tenant_id
        self.administration.claim(self.id)
        self.administration.ensure_topology(made)
        self.url, self.hash = self.rotate()

    def rotate(self, *, confirm: bool = True) -> tuple[str, PasswordHash]:
        credentials, value = self.administration.new_credentials(self.id)
        self.hashes.propose(self.id, value)
        self.administration.ensure_user(self.id, value)
        if confirm:
            self.hashes.confirm(self.id)
            self.administration.end_sessions(self.id)
        return credentials.iggy_url, value

    def drift(self) -> set[DriftKind]:
        survey = self.administration.survey()
        found = drift.differences(self.topology, self.hashes.load(self.id), survey, consuming=False)
        return {one.kind for one in found}


def opens(url: str) -> bool:
    try:
        Session(Access.of(url)).close()
    except RefusedError:
        return False
    return True
