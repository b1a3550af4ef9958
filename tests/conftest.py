"""The services the tests run against, and what tests of every kind share."""

from __future__ import annotations

import functools
import gc
import logging
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator

import httpx
import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import Scheduling

from tenantry.database.pool import Database
from tests import depth, distribution, services_iggy, services_postgres, services_rabbitmq
from tests.on_demand import Services
from tests.preloaded import Preloaded
from tests.rabbitmq_node import PrivateNode
from tests.waiting import DEADLINE
from tests.workers import Workers

# To make a TLS context, which every client of httpx wants, all the world's certificates are read.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

depth.load()

SERVICES = {
    "postgres": services_postgres.PostgresService,
    "rabbitmq": services_rabbitmq.RabbitService,
    "iggy": services_iggy.IggyService,
    "preloaded": Preloaded,
}
_services = pytest.StashKey[Services]()
_workers = pytest.StashKey[Workers]()
_basetemp = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job is deaf to it, and so would be all that is started here.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Once a run, by the controller: xdist's workers inherit the environment that names them.
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # Whoever ends a run by it should find none of its servers either.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        if config.option.basetemp is None:
            # A run's own: in the directory that pytest makes for all of a user's runs, each that
            # begins takes away what another has let the embedded PostgreSQL's user do there.
            config.option.basetemp = config.stash[_basetemp] = tempfile.mkdtemp(prefix="tnt-run-")
        config.stash[_workers] = workers = Workers()
        config.pluginmanager.register(workers)
        # Ended in this order: workers are forked from a fork of what is preloaded.
        services = {"workers": workers, **{name: make() for name, make in SERVICES.items()}}
        config.stash[_services] = Services(services)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep all that is loaded for good out of the garbage collector's sight.

    Each process of a run collects thousands of tests: to look through them again and again is a
    third of what that costs.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    distribution.arrange(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    workers = config.stash[_workers]
    workers.arguments = config.args
    workers.start()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return distribution.Units(config, log)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus != pytest.ExitCode.OK and _basetemp in session.config.stash:
        del session.config.stash[_basetemp]  # somebody will look at what is in it


def pytest_unconfigure(config: pytest.Config) -> None:
    if _services in config.stash:
        config.stash[_services].close()
    if _basetemp in config.stash:
        shutil.rmtree(config.stash[_basetemp], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if isinstance(report.longrepr, tuple) and services_iggy.NOWHERE in report.longrepr[2]:
        # One line for all of them, not one for each place that a test stands in.
        report.longrepr = (services_iggy.__file__, None, report.longrepr[2])
    return report


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """Log what the daemon does unless told otherwise: a line for each request costs as much as one.

    Tracebacks as they are: drawn with rich, a failing actor's takes a second.
    """
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    # All there is to be configured: a test before may have had the program configure it.
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        context_class=dict,
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )


@pytest.fixture
def rabbitmq() -> Iterator[services_rabbitmq.RabbitHost]:
    """A fresh virtual host on the run's RabbitMQ, deleted after the test."""
    with services_rabbitmq.virtual_host() as host:
        yield host


@pytest.fixture
def iggy() -> str:
    """The URL of the run's Iggy server, which all tests share: name tenants uniquely."""
    return services_iggy.url()


@pytest.fixture(scope="session")
def breakable_node() -> Iterator[PrivateNode]:
    """A RabbitMQ node that may be killed and starved; each test leaves it running."""
    with services_rabbitmq.own_node() as node:
        yield node


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
    opened.open(DEADLINE)
    # A pool makes its first connection beside its caller, who then waits for it a few seconds only.
    assert opened._pool is not None
    opened._pool.wait(DEADLINE)
    yield opened
    opened.close()
