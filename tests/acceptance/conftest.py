"""A program for each test, and its stderr where the test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.acceptance.program import Program
from tests.ledger import Ledger
from tests.services_rabbitmq import RabbitHost

LAST_LINES = 60


@pytest.fixture
def program(rabbitmq: RabbitHost, database_url: str) -> Iterator[Program]:
    """A daemon that has not been started yet."""
    with Program(rabbitmq, database_url) as made:
        yield made
        assert "Traceback" not in made.stderr


@pytest.fixture
def running(program: Program) -> Program:
    """A daemon that consumes."""
    return program.start()


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    """An empty ledger over the test's database."""
    return Ledger(database_url=database_url)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    program = getattr(item, "funcargs", {}).get("program")
    if report.failed and isinstance(program, Program):
        lines = program.stderr.splitlines()[-LAST_LINES:]
        report.sections.append(("the daemon's stderr", "\n".join(lines)))
