"""The services the tests run against, and what tests of every kind share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
import structlog

from tenantry.database.pool import Database
from tests import services_postgres, services_rabbitmq

# How long a machine takes says nothing about what is tested.
hypothesis.settings.register_profile(
    "anywhere", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("anywhere")

_postgres = services_postgres.PostgresService()
_rabbitmq = services_rabbitmq.RabbitService()


def pytest_configure(config: pytest.Config) -> None:
    # Once a run, by the controller: xdist's workers inherit the environment that names them.
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    with ThreadPoolExecutor(max_workers=2) as pool:
        starting = [pool.submit(service.start) for service in (_postgres, _rabbitmq)]
    for one in starting:
        one.result()


def pytest_unconfigure(config: pytest.Config) -> None:
    try:
        _rabbitmq.stop()
    finally:
        _postgres.stop()


@pytest.fixture(autouse=True)
def _plain_tracebacks() -> None:
    """Log tracebacks as they are: drawn with rich, a failing actor's takes a second."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, renderer])


@pytest.fixture
def rabbitmq() -> Iterator[services_rabbitmq.RabbitHost]:
    """A fresh virtual host on the run's RabbitMQ, deleted after the test."""
    with services_rabbitmq.virtual_host() as host:
        yield host


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
