"""Fixtures that several suites of ports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.database.pool import Database
from tenantry.messages.postgres import PostgresMessageStore
from tests import services_rabbitmq
from tests.fakes.handling import World
from tests.fakes.messages import TENANT as TENANT_ID
from tests.services_rabbitmq import RabbitHost


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitHost]:
    """A virtual host for the tests of one file; like other brokers, it has tenants of its own."""
    with services_rabbitmq.virtual_host() as host:
        yield host


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    world = World(database)
    yield world
    world.close()


@pytest.fixture
def store(database: Database) -> PostgresMessageStore:
    store = PostgresMessageStore(database)
    store.create_partition(TENANT_ID)
    return store
