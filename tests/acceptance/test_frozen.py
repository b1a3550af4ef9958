"""A database whose processes are stopped (SIGSTOP): its connections stay open, and silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.database.embedded import EmbeddedPostgres
from tests.acceptance.program import Program
from tests.acceptance.test_outages import wait_consuming
from tests.ledger import Ledger
from tests.services_postgres import frozen, running_server
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    with running_server() as made:
        yield made


def test_a_frozen_database_is_noticed_and_nothing_waits_for_it_for_ever(
    rabbitmq: RabbitHost, server: EmbeddedPostgres, ledger: Ledger
) -> None:
    url = server.start()
    ledger.database_url = url
    with Program(rabbitmq, url) as program:
        program.start(TENANTRY_SHUTDOWN_DEADLINE_SECONDS="3")
        tenant = program.create()
        with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=500):
            ledger.wait_confirmed()
            with frozen(server):
                eventually(lambda: program.status_of("/readyz") == 503, what="readyz 503")
                assert program.call("GET", "/healthz").status_code == 200
                ledger.wait_confirmed()
            wait_consuming(program, ledger)
        ledger.check(alive=program.check_running)
        with ledger.publishing([(tenant.id, tenant.amqp_url)], rate=500):
            ledger.wait_confirmed()
            with frozen(server):
                assert program.stop() in {0, 1}
        program.start()
        ledger.check(alive=program.check_running)
        program.check_no_traceback()
