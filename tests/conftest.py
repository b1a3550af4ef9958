"""The services the tests run against, and what tests of every kind share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.database.pool import Database
from tests import services_postgres

_postgres = services_postgres.PostgresService()


def pytest_configure(config: pytest.Config) -> None:
    # Once a run, by the controller: xdist's workers inherit the environment that names it.
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        _postgres.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    _postgres.stop()


@pytest.fixture
def database_url() -> Iterator[str]:
    """The URL of a fresh database with the whole schema, dropped after the test."""
    with services_postgres.database(services_postgres.admin_url()) as url:
        yield url


@pytest.fixture
def empty_database_url() -> Iterator[str]:
    """The URL of a fresh database without any schema, dropped after the test."""
    with services_postgres.database(services_postgres.admin_url(), migrated=False) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open `Database` on a fresh database."""
    opened = Database(database_url)
    opened.open()
    yield opened
    opened.close()
