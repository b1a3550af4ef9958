"""What several suites of ports stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.database.pool import Database
from tenantry.messages.postgres import PostgresMessageStore
from tests.fakes.handling import World
from tests.fakes.messages import TENANT as TENANT_ID


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
