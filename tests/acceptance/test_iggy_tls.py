"""Apache Iggy behind TLS, with a certificate of a private authority."""

from __future__ import annotations

from pathlib import Path

import trustme

from tests import services_iggy
from tests.acceptance.program import Program
from tests.waiting import eventually


def test_daemon_and_tenants_trust_the_authority_that_is_named_and_no_other(
    database_url: str, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    ours, another = tmp_path / "ours.pem", tmp_path / "another.pem"
    authority.cert_pem.write_to_path(ours)
    stranger.cert_pem.write_to_path(another)
    with (
        services_iggy.own_server((chain, key)) as server,
        Program(None, database_url) as program,
    ):
        program.settings = {"BROKER_URL": server.url, "BROKER_CA_FILE": str(another)}
        program.spawn()
        eventually(
            lambda: not program.running or "broker.ca_file" in program.stderr,
            what="a line that names the key",
        )
        program.kill()
        assert "broker.ca_file (BROKER_CA_FILE) names its authority" in program.stderr
        program.start(BROKER_CA_FILE=str(ours))
        sending = ("--tenants", "2", "--producers", "1", "--message-batches-limit", "2")
        sent = program.cli("produce", *sending, BROKER_CA_FILE=str(ours))
        assert sent.code == 0, sent.stderr
        assert "Ensured no access to stream: tenant_2_stream" in sent.stdout
        read = program.cli("consume", "--tenants", "2", "--json", BROKER_CA_FILE=str(ours))
        assert (read.code, read.json["received"]) == (0, 2 * 3 * 2 * 10), read.stderr
        proof = program.cli("verify-isolation", "--probe", BROKER_CA_FILE=str(ours))
        assert proof.code == 0, proof.stderr
        refused = program.cli("produce", *sending, BROKER_CA_FILE=str(another))
        assert refused.code == 1
        assert "broker.ca_file" in refused.stderr
        assert program.stop() == 0
