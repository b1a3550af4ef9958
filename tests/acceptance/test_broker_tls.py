"""The daemon, its front and its commands, with a RabbitMQ behind TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.acceptance.program import Program
from tests.acceptance.test_http_lifecycle import tcp_url
from tests.tls_front import behind_tls
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def secured(program: Program, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a daemon for a broker that demands a client certificate."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ours = authority.issue_cert("daemon@example.org")
    files = {name: str(tmp_path / name) for name in ("ca.pem", "both.pem")}
    authority.cert_pem.write_to_path(files["ca.pem"])
    ours.private_key_and_cert_chain_pem.write_to_path(files["both.pem"])
    with (
        behind_tls(program.host.url, "amqps", context) as url,
        behind_tls(program.host.management_url, "https", context) as management_url,
    ):
        yield {
            "RABBITMQ_URL": url,
            "RABBITMQ_MANAGEMENT_URL": management_url,
            "RABBITMQ_CA_FILE": files["ca.pem"],
            "RABBITMQ_CERT_FILE": files["both.pem"],
        }


def test_a_daemon_with_a_companys_own_authority_does_everything(
    program: Program, secured: dict[str, str]
) -> None:
    without = program.run(**{**secured, "RABBITMQ_CA_FILE": ""})
    assert without.code == 1
    assert "certificate is of an authority that is not trusted here" in without.complaint
    assert "rabbitmq.ca_file (RABBITMQ_CA_FILE)" in without.complaint
    program.start(**secured)
    tenant = program.create()
    assert tenant.amqp_url.startswith("amqps://")
    # Over TCP the front answers, which publishes itself.
    with httpx.Client(base_url=tcp_url(program), timeout=DEADLINE, trust_env=False) as client:
        published = client.post(f"/tenants/{tenant.id}/messages", json={"payload": 1})
        assert published.status_code == 202
    eventually(lambda: program.runtime(tenant)["stored"] == 1, what="the row")
    for arguments in (["verify-isolation"], ["verify-isolation", "--probe"]):
        proof = program.cli(*arguments, **secured)
        assert proof.code == 0, proof.complaint
    assert program.stop() == 0
