"""The private node: what it leaves open and behind, and publishing through its faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pika
import pytest

from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing
from tenantry.broker.rabbitmq.node import PrivateNode
from tenantry.broker.rabbitmq.node_server import ENVIRONMENT, Server
from tenantry.broker.topology import consumed
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.faults.services import rabbitmqctl
from tests.services_rabbitmq import RabbitHost
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node")


@pytest.fixture(scope="module")
def node(directory: Path) -> Iterator[PrivateNode]:
    """One for all tests: each leaves it running, as it has found it."""
    with PrivateNode(directory) as node:
        try:
            yield node
        finally:
            node.stop(grace=0)


@pytest.fixture
def broker(node: PrivateNode) -> Iterator[Broker]:
    host = RabbitHost(url=node.url, management_url=node.management_url, vhost="/")
    with brokers.rabbitmq(host) as broker:
        yield broker


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_it_keeps_messages_ports_and_password_over_a_crash_and_a_restart(
    node: PrivateNode, directory: Path
) -> None:
    url = node.url
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("kept", durable=True)
    # RabbitMQ writes definitions down a moment later; that they are, a stop in order makes sure.
    node.restart()
    first = node.pid
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        persistent = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("", "kept", b"still here", persistent)
    node.kill()
    assert first is not None
    assert not is_alive(first)
    node.start()
    assert node.url == url
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        assert connection.channel().basic_get("kept", auto_ack=True)[2] == b"still here"
    with pytest.raises(BrokerError, match="in use by another broker"):
        _second_start(directory)


def _second_start(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenantry.broker.rabbitmq.node._LOCK_SECONDS", 0.1)
        PrivateNode(directory).start()


def test_its_password_is_in_no_process_arguments_and_no_readable_file(
    node: PrivateNode, directory: Path
) -> None:
    password = pika.URLParameters(node.url).credentials.password
    assert password not in repr(node)
    arguments = Path(f"/proc/{node.pid}/cmdline")
    if arguments.exists():
        assert password.encode() not in arguments.read_bytes()
        assert password.encode() not in Path(f"/proc/{node.pid}/environ").read_bytes()
    for path in directory.rglob("*"):
        if path.is_file() and password.encode() in path.read_bytes():
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's list of sockets")
def test_it_listens_on_the_loopback_interface_only(node: PrivateNode) -> None:
    inodes = set()
    for descriptor in Path(f"/proc/{node.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed while we look
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                listening.add(local.partition(":")[0])
    assert listening == {"0100007F"}


def test_it_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tenantry.broker.rabbitmq.node import *\n"
        "node = PrivateNode(Path(sys.argv[1])); node.start(); print(node.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "node")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    eventually(lambda: not is_alive(pid), timeout=30)


def test_a_node_that_does_not_come_up_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\necho 'erl: not found'\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setattr("tenantry.broker.rabbitmq.node.find_server", lambda: Server(tmp_path))
    node = PrivateNode(tmp_path / "node")
    with pytest.raises(BrokerError, match=r"(?s)exit status 127.*erl: not found"):
        node.start()
    assert node.pid is None


def test_a_taken_port_is_not_insisted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivateNode(tmp_path / "one") as one, pytest.MonkeyPatch.context() as patch:
        taken = (tmp_path / "one" / "ports.json").read_text()
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "ports.json").write_text(taken)
        # As if somebody took the ports just after they were found free.
        free = iter([True, True, True])
        real = __import__("tenantry.broker.rabbitmq.node_setup", fromlist=["_is_free"])._is_free
        patch.setattr(
            "tenantry.broker.rabbitmq.node_setup._is_free",
            lambda port: next(free, None) or real(port),
        )
        with PrivateNode(tmp_path / "two") as two:
            assert two.url.rpartition("@")[2] != one.url.rpartition("@")[2]
            two.stop(grace=0)
        one.stop(grace=0)


def test_without_rabbitmq_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr("tenantry.broker.rabbitmq.node_server._INSTALLED", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match="apt-get install rabbitmq-server"):
        PrivateNode(tmp_path / "node").start()


def test_a_publisher_waits_for_a_broker_that_comes_back(node: PrivateNode, broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"before")
    node.restart()
    broker.publish(tenant, "events", b"after")
    assert broker.ready(consumed(tenant)[1].name) == [b"before", b"after"]


def test_what_is_in_flight_when_the_broker_dies_arrives(node: PrivateNode, broker: Broker) -> None:
    tenant = broker.tenant("events")
    started = threading.Event()
    expected = [b"%05d" % number for number in range(3_000)]

    def publish() -> None:
        for at in range(0, len(expected), 100):
            broker.publish(tenant, "events", *expected[at : at + 100])
            started.set()

    broker.publish(tenant, "default", b"first")
    # A quorum queue survives a crash once it is older than a second: its count is, when it shows.
    eventually(lambda: broker.administration.pending()[tenant.tenant_id] == 1, timeout=20)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(publish)
        assert started.wait(20)
        node.kill()
        node.start()
        result.result(60)
    found = broker.ready(consumed(tenant)[1].name)
    assert sorted(set(found)) == expected


def test_a_blocked_broker_is_named_as_the_reason(node: PrivateNode, broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"before")
    message = Outgoing(
        exchange=names.stream_name(tenant.tenant_id), routing_key="events", body=b"during"
    )

    def reason() -> str:
        try:
            broker.publishing.publish([message], timeout=0.2)
        except BrokerUnavailableError as error:
            return str(error)
        return ""

    rabbitmqctl(node, "set_vm_memory_high_watermark", "0.00001")
    eventually(lambda: "takes no messages now" in reason(), timeout=30)
    rabbitmqctl(node, "set_vm_memory_high_watermark", "0.4")
    broker.publish(tenant, "events", b"after")
    assert broker.ready(consumed(tenant)[1].name)[-1] == b"after"
