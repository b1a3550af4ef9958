"""A program for each test; a failing test reports the program's stderr."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterator

import pytest

from tests import services_postgres, services_rabbitmq
from tests.acceptance.program import Program
from tests.depth import examples
from tests.ledger import LIGHT, Ledger
from tests.services_rabbitmq import RabbitHost

LAST_LINES = 60

# The tests' own clients lose connections on purpose.
logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


@pytest.fixture
def program(
    request: pytest.FixtureRequest, rabbitmq: RabbitHost, database_url: str
) -> Iterator[Program]:
    """A daemon that has not been started yet."""
    with Program(rabbitmq, database_url) as made:
        made.own_interpreter |= request.node.get_closest_marker("own_interpreter") is not None
        yield made
        made.check_no_traceback()


@pytest.fixture
def running(program: Program) -> Program:
    """A daemon that consumes."""
    return program.start()


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """The settings of a file's shared daemon."""
    return {}


@pytest.fixture(scope="module")
def lasting(settings: dict[str, str]) -> Iterator[Program]:
    """A daemon that runs for all tests of one file; `shared` gives it to each of them."""
    with (
        services_rabbitmq.virtual_host() as host,
        services_postgres.database(services_postgres.admin_url()) as url,
        Program(host, url) as made,
    ):
        made.settings |= settings
        yield made.start()
        assert made.stop() == 0
        made.check_no_traceback()


@pytest.fixture
def shared(lasting: Program) -> Program:
    """A daemon that consumes, shared by a file's tests, which neither stop nor break it.

    It may have other tests' tenants, under other names. (The file's tests have to run together;
    `tests.distribution` makes sure of that.)
    """
    lasting.check_running()
    lasting.next_test()
    return lasting


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    """An empty ledger over the test's database; its clients are slow, except in a thorough run."""
    return Ledger(database_url=database_url, most=examples(LIGHT, math.inf))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    arguments = getattr(item, "funcargs", {}).values()
    programs = {one for one in arguments if isinstance(one, Program)}
    for program in programs if report.failed else ():
        lines = program.stderr.splitlines()[-LAST_LINES:]
        report.sections.append(("the daemon's stderr", "\n".join(lines)))
