"""RabbitMQ behind TLS, with an authority of a company's own: AMQP and the management API alike."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing, TenantTopology
from tenantry.broker.rabbitmq import tls as securing
from tenantry.broker.rabbitmq.administration import RabbitAdministration
from tenantry.broker.rabbitmq.consuming import RabbitConsuming
from tenantry.broker.rabbitmq.dead_letters import RabbitDeadLetters
from tenantry.broker.rabbitmq.publishing import RabbitPublishing
from tenantry.broker.rabbitmq.tls import Tls
from tenantry.domain import names
from tenantry.isolation.proof import verify_isolation
from tenantry.tenant_client.access import TenantAccess
from tests import brokers
from tests.brokers import RecordingSink, bodies
from tests.services_rabbitmq import RabbitHost
from tests.tls_front import behind_tls
from tests.waiting import DEADLINE

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Files of an authority, and of what it has signed."""

    directory: Path
    authority: trustme.CA

    @property
    def ca_file(self) -> str:
        return self._written("ca.pem", self.authority.cert_pem)

    def server(self, *names: str, wants: trustme.CA | None = None, **how: object) -> ssl.SSLContext:
        """Make a server's side, which `wants` clients to have a certificate of an authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(*names, **how).configure_cert(context)  # type: ignore[arg-type]
        if wants is not None:
            wants.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, name: str) -> tuple[str, str]:
        """Give the files of a client's certificate and its key."""
        made = self.authority.issue_cert(f"{name}@example.org")
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return (
            self.file(f"{name}.pem", chain),
            self.file(f"{name}.key", made.private_key_pem.bytes()),
        )

    def file(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)

    def _written(self, name: str, blob: trustme.Blob) -> str:
        return self.file(name, blob.bytes())


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(directory=tmp_path_factory.mktemp("papers"), authority=trustme.CA())


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """Of an authority that nobody trusts."""
    return Papers(directory=tmp_path_factory.mktemp("strangers"), authority=trustme.CA())


@contextmanager
def secured(host: RabbitHost, context: ssl.SSLContext) -> Iterator[RabbitHost]:
    """Give the same virtual host behind TLS."""
    with (
        behind_tls(host.url, "amqps", context) as url,
        behind_tls(host.management_url, "https", context) as management_url,
    ):
        yield RabbitHost(url=url, management_url=management_url, vhost=host.vhost)


def administration(host: RabbitHost, tls: Tls) -> RabbitAdministration:
    return RabbitAdministration(
        url=host.url,
        management_url=host.management_url,
        queue_type="classic",
        installation=brokers.INSTALLATION,
        tls=tls,
    )


def test_everything_goes_its_way_with_a_companys_own_authority_and_a_certificate_of_ours(
    rabbitmq: RabbitHost, papers: Papers
) -> None:
    cert_file, key_file = papers.client("daemon")
    tls = Tls(ca_file=papers.ca_file, cert_file=cert_file, key_file=key_file)
    context = papers.server("127.0.0.1", wants=papers.authority)
    with ExitStack() as stack:
        host = stack.enter_context(secured(rabbitmq, context))
        ours = administration(host, tls)
        stack.callback(ours.close)
        ours.check()
        tenant = TenantTopology(tenant_id=rabbitmq.vhost, topics=(), partitions=1)
        ours.claim(tenant.tenant_id)
        stack.callback(ours.remove_user, tenant.tenant_id)
        ours.ensure_topology(tenant)
        credentials, hashed = ours.new_credentials(tenant.tenant_id)
        ours.ensure_user(tenant.tenant_id, hashed)
        assert credentials.amqp_url.startswith("amqps://")
        consuming = RabbitConsuming(host.url, tls=tls)
        publishing = RabbitPublishing(host.url, tls=tls)
        stack.enter_context(brokers.running(consuming))
        stack.enter_context(brokers.running(publishing))
        sink = RecordingSink()
        consuming.subscribe(tenant.queues(), prefetch=10, sink=sink)
        message = Outgoing(
            exchange=names.exchange_name(tenant.tenant_id), routing_key="default", body=b"hello"
        )
        publishing.publish([message], timeout=DEADLINE)
        assert bodies(sink.received(1)) == [b"hello"]
        with RabbitDeadLetters(host.url, tls=tls).browse(tenant.tenant_id) as browser:
            assert browser.next(1) == []
        mine = TenantTopology(tenant_id=tenant.tenant_id, topics=(), partitions=1)
        report = verify_isolation(
            [TenantAccess(topology=mine, credentials=credentials)],
            [mine],
            say=lambda _line: None,
            management=ours.management.address,
            tls=tls,
        )
        assert report.holds
        assert len(report.checks) > 2


def test_the_systems_trust_store_is_what_both_go_by_where_no_authority_is_named(
    rabbitmq: RabbitHost, papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secured(rabbitmq, papers.server("127.0.0.1")) as host:
        monkeypatch.setenv("SSL_CERT_FILE", papers.ca_file)
        securing._context.cache_clear()
        try:
            ours = administration(host, Tls())
            ours.check()
            ours.close()
        finally:
            securing._context.cache_clear()


Server = Callable[[Papers, Papers], ssl.SSLContext]

REFUSALS: dict[str, tuple[Server, str]] = {
    "another authority": (
        lambda _ours, theirs: theirs.server("127.0.0.1"),
        "certificate is of an authority that is not trusted here: set rabbitmq.ca_file",
    ),
    "another name": (
        lambda ours, _theirs: ours.server("elsewhere.example"),
        "the broker's certificate is for another name",
    ),
    "expired": (
        lambda ours, _theirs: ours.server(
            "127.0.0.1", not_before=YESTERDAY - timedelta(days=1), not_after=YESTERDAY
        ),
        "the broker's certificate has expired",
    ),
    "wants a certificate": (
        lambda ours, _theirs: ours.server("127.0.0.1", wants=ours.authority),
        "rabbitmq.cert_file",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_with_a_certificate_is_said_in_one_line(
    rabbitmq: RabbitHost, papers: Papers, strangers: Papers, case: str
) -> None:
    server, sign = REFUSALS[case]
    tls = Tls(ca_file=papers.ca_file)
    with secured(rabbitmq, server(papers, strangers)) as host:
        for one in (host, replace(host, url=rabbitmq.url)):
            ours = administration(one, tls)
            with pytest.raises(BrokerUnavailableError) as caught:
                ours.check()
            ours.close()
            line = str(caught.value)
            assert sign in line
            assert "\n" not in line
            failing = one.url if one is host else one.management_url
            assert f"127.0.0.1:{urlsplit(failing).port}" in line


def test_a_certificate_that_the_broker_does_not_trust_is_named(
    rabbitmq: RabbitHost, papers: Papers, strangers: Papers
) -> None:
    cert_file, key_file = strangers.client("daemon")
    tls = Tls(ca_file=papers.ca_file, cert_file=cert_file, key_file=key_file)
    context = papers.server("127.0.0.1", wants=papers.authority)
    with secured(rabbitmq, context) as host:
        ours = administration(host, tls)
        with pytest.raises(BrokerUnavailableError, match=r"certificate.*rabbitmq\.cert_file"):
            ours.check()
        ours.close()


def test_a_port_without_tls_is_said_to_be_none(rabbitmq: RabbitHost, papers: Papers) -> None:
    plain = RabbitHost(
        url=rabbitmq.url.replace("amqp://", "amqps://", 1),
        management_url=rabbitmq.management_url,
        vhost=rabbitmq.vhost,
    )
    ours = administration(plain, Tls(ca_file=papers.ca_file))
    with pytest.raises(BrokerUnavailableError, match="does not speak TLS"):
        ours.check()
    ours.close()


def test_files_that_cant_be_used_are_named_with_their_key(papers: Papers) -> None:
    cert_file, key_file = papers.client("one")
    _, other_key = papers.client("other")
    key = serialization.load_pem_private_key(Path(key_file).read_bytes(), None)
    secret = papers.file(
        "secret.key",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        ),
    )
    text, missing = papers.file("text", b"no certificate"), str(papers.directory / "missing")
    for tls, line in (
        (Tls(ca_file=missing), f"rabbitmq.ca_file .*{missing} can't be read: no such file"),
        (Tls(ca_file=str(papers.directory)), "rabbitmq.ca_file .*can't be read: is a directory"),
        (Tls(ca_file=text), f"rabbitmq.ca_file .*{text} holds no certificate"),
        (Tls(cert_file=text), f"rabbitmq.cert_file .*{text} holds no certificate"),
        (Tls(cert_file=cert_file), f"rabbitmq.key_file .*{cert_file} holds no key"),
        (Tls(cert_file=cert_file, key_file=text), f"rabbitmq.key_file .*{text} holds no key"),
        (
            Tls(cert_file=cert_file, key_file=other_key),
            f"rabbitmq.key_file .*{other_key} is not the key of the certificate in {cert_file}",
        ),
        (Tls(cert_file=cert_file, key_file=secret), f"rabbitmq.key_file .*{secret} holds no key"),
        (Tls(key_file=key_file), "rabbitmq.key_file .*a key goes with its certificate"),
    ):
        with pytest.raises(BrokerError, match=line):
            tls.context()
    Tls(cert_file=cert_file, key_file=key_file).context()
    both = papers.file("both.pem", Path(cert_file).read_bytes() + Path(key_file).read_bytes())
    Tls(cert_file=both).context()
