"""The services the tests run against, and what tests of every kind share."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
import structlog

from tenantry.database.pool import Database
from tests import depth, services_postgres, services_rabbitmq
from tests.preloaded import Preloaded

# To make a TLS context, which every client of httpx wants, all the world's certificates are read.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

depth.load()

_postgres = services_postgres.PostgresService()
_rabbitmq = services_rabbitmq.RabbitService()
_preloaded = Preloaded()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job is deaf to it, and so would be all that is started here.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Once a run, by the controller: xdist's workers inherit the environment that names them.
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    with ThreadPoolExecutor(max_workers=3) as pool:
        starting = [pool.submit(one.start) for one in (_postgres, _rabbitmq, _preloaded)]
    for one in starting:
        one.result()


def pytest_unconfigure(config: pytest.Config) -> None:
    with ExitStack() as stack:
        for service in (_postgres, _rabbitmq, _preloaded):
            stack.callback(service.stop)


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
