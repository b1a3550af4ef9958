"""The embedded PostgreSQL comes back by itself."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tenantry.database.embedded import PostgresKeeper
from tests import scratch
from tests.services_postgres import own_server
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own directory: each run that starts makes that private again.

    Under root the server runs as another user, who must get there.
    """
    with scratch.directory("tnt-pg-") as made:
        yield made


def test_a_server_that_is_killed_is_started_again_with_its_data(directory: Path) -> None:
    server = own_server(directory / "postgres")
    url = server.start()
    keeper = PostgresKeeper(server, every=0.05)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
        pid = int((directory / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)

        def answers() -> bool:
            try:
                with psycopg.connect(url, connect_timeout=2) as connection:
                    return connection.execute("SELECT n FROM kept").fetchone() == (42,)
            except psycopg.OperationalError:
                return False

        eventually(answers)
    finally:
        keeper.stop()
        thread.join(DEADLINE)
        server.stop()
    assert not thread.is_alive()
    assert not server.running
