"""The last password shown is valid, and no session of another password lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pika
import psycopg
import pytest
from pika.exceptions import AMQPError

from tests.acceptance.program import Program, Tenant
from tests.held_logins import held_client, held_role
from tests.waiting import eventually


@pytest.fixture(params=["rabbitmq", "embedded"])
def daemon(request: pytest.FixtureRequest, database_url: str) -> Iterator[Program]:
    host = request.getfixturevalue("rabbitmq") if request.param == "rabbitmq" else None
    with Program(host, database_url) as made:
        yield made
        made.check_no_traceback()


def lets_in(tenant: Tenant) -> None:
    """Connect as the tenant, or raise."""
    if tenant.amqp_url.startswith("amqp"):
        connection = pika.BlockingConnection(pika.URLParameters(tenant.amqp_url))
        # Setting the password back ends the user's sessions, this one perhaps at any moment.
        with suppress(AMQPError):
            connection.close()
        let_go(connection)
    else:
        psycopg.connect(tenant.amqp_url).close()


def test_after_a_rotation_that_was_cut_short_the_last_password_shown_is_good(
    daemon: Program,
) -> None:
    # The failpoint's first pass is the creation's own password; the restart has no such pass.
    daemon.start(TENANTRY_FAILPOINTS="password_pending:kill@2")
    tenant = daemon.create()
    cut_short(daemon, tenant)
    daemon.start(TENANTRY_FAILPOINTS="password_set:kill")
    cut_short(daemon, tenant)
    daemon.start()
    lets_in(tenant)
    events = [one["type"] for one in daemon.get(f"/tenants/{tenant.id}/events")["data"]]
    assert "CredentialsRotated" not in events
    lets_in(daemon.rotated(tenant.id))


def test_what_begins_to_log_in_before_a_rotation_and_comes_after_it_does_not_stay(
    daemon: Program,
) -> None:
    daemon.start()
    tenant = daemon.create()
    of_broker = tenant.amqp_url.startswith("amqp")
    log_in = held_client if of_broker else held_role
    with log_in(tenant.amqp_url) as held:
        new = daemon.rotated(tenant.id)
        lets_in(new)
        with held.go_on() as late:
            eventually(lambda: not lives(late), what="the end of the session")
    lets_in(new)


def lives(session: pika.BlockingConnection | psycopg.Connection) -> bool:
    """Tell whether a session still lives."""
    if isinstance(session, pika.BlockingConnection):
        try:
            session.process_data_events(time_limit=0.1)
        except AMQPError:
            let_go(session)
            return False
        return True
    try:
        session.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def let_go(connection: pika.BlockingConnection) -> None:
    """Clean up a connection that the broker has closed between calls, as pika does not."""
    connection._cleanup()


def cut_short(daemon: Program, tenant: Tenant) -> None:
    """Rotate the credentials, which kills the daemon at its failpoint."""
    lets_in(tenant)
    with pytest.raises(httpx.TransportError):
        daemon.call("POST", f"/tenants/{tenant.id}/credentials/rotate")
    assert daemon.wait() == -9
