"""A password that nobody was shown never replaces the one that somebody was."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pika
import psycopg
import pytest

from tests.acceptance.program import Program, Tenant


@pytest.fixture(params=["rabbitmq", "embedded"])
def daemon(request: pytest.FixtureRequest, database_url: str) -> Iterator[Program]:
    host = request.getfixturevalue("rabbitmq") if request.param == "rabbitmq" else None
    with Program(host, database_url) as made:
        yield made
        assert "Traceback" not in made.stderr


def lets_in(tenant: Tenant) -> None:
    """Connect as the tenant, or raise."""
    if tenant.amqp_url.startswith("amqp"):
        pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)).close()
    else:
        psycopg.connect(tenant.amqp_url).close()


def test_after_a_rotation_that_was_cut_short_the_last_password_shown_is_good(
    daemon: Program,
) -> None:
    # The first pass is the creation's own password; there is none after the restart.
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


def cut_short(daemon: Program, tenant: Tenant) -> None:
    """Rotate, which ends the daemon."""
    lets_in(tenant)
    with pytest.raises(httpx.TransportError):
        daemon.call("POST", f"/tenants/{tenant.id}/credentials/rotate")
    assert daemon.wait() == -9
