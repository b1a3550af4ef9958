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


@pytest.mark.parametrize("point", ["password_pending", "password_set"])
def test_after_a_rotation_that_was_cut_short_the_last_password_shown_is_good(
    daemon: Program, point: str
) -> None:
    # The first pass is the creation's own password.
    daemon.start(TENANTRY_FAILPOINTS=f"{point}:kill@2")
    tenant = daemon.create()
    lets_in(tenant)
    with pytest.raises(httpx.TransportError):
        daemon.call("POST", f"/tenants/{tenant.id}/credentials/rotate")
    assert daemon.wait() == -9
    daemon.start()
    lets_in(tenant)
    events = [one["type"] for one in daemon.get(f"/tenants/{tenant.id}/events")["data"]]
    assert "CredentialsRotated" not in events
    lets_in(daemon.rotated(tenant.id))
