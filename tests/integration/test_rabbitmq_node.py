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
from tenantry.domain import names
from tests import brokers
from tests.brokers import Broker
from tests.depth import THOROUGH
from tests.rabbitmq_node import PrivateNode
from tests.rabbitmq_node_setup import ENVIRONMENT, Server
from tests.services_rabbitmq import LITTLE, MUCH, allow_memory, virtual_host_of
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def node(breakable_node: PrivateNode) -> PrivateNode:
    """One for all tests: each leaves it running, as it has found it."""
    return breakable_node


@pytest.fixture
def directory(node: PrivateNode) -> Path:
    return node.directory


@pytest.fixture
def broker(node: PrivateNode) -> Iterator[Broker]:
    with (
        virtual_host_of(node.url, node.management_url) as host,
        brokers.rabbitmq(host) as broker,
    ):
        yield broker


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


ENDS = {"in order": PrivateNode.restart, "killed": lambda node: (node.kill(), node.start())}
"""How a node ends and comes back."""


@pytest.mark.skipif(not THOROUGH, reason="a usual run tries it in tests/faults/experiments/broker")
@pytest.mark.parametrize("how", ENDS)
def test_what_is_in_flight_when_the_node_ends_arrives_and_it_keeps_its_ports_password_and_messages(
    node: PrivateNode, broker: Broker, how: str
) -> None:
    url, first, host = node.url, node.pid, broker.host
    assert host is not None
    tenant = broker.tenant("events")
    started, over = threading.Event(), threading.Event()
    expected: list[bytes] = []

    def publish() -> None:
        while not over.wait(0.01):
            bodies = [b"%05d" % (len(expected) + number) for number in range(5)]
            broker.publish(tenant, "events", *bodies)
            expected.extend(bodies)
            started.set()

    with pika.BlockingConnection(pika.URLParameters(host.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True)
        channel.confirm_delivery()
        persistent = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("", "kept", b"still here", persistent)
    broker.publish(tenant, "default", b"first")
    # A quorum queue survives a crash once it is older than a second: its count is, when it shows.
    # So is what RabbitMQ writes down of a classic one a moment after it was declared.
    eventually(lambda: broker.queues.queue_counts()[tenant.tenant_id].ready == 1)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(publish)
        try:
            assert started.wait(DEADLINE)
            ENDS[how](node)
        finally:
            over.set()
        assert first is not None
        assert not is_alive(first)
        assert node.url == url
        result.result(DEADLINE)
    broker.publish(tenant, "events", b"after")
    found = broker.ready(tenant.queues()[1].name)
    assert sorted(set(found)) == [*expected, b"after"]
    assert broker.ready("kept") == [b"still here"]


def test_a_directory_has_one_node_at_a_time(directory: Path) -> None:
    with pytest.raises(BrokerError, match="in use by another broker"):
        _second_start(directory)


def _second_start(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.rabbitmq_node._LOCK_SECONDS", 0.1)
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


# Of RabbitMQ what its starter sees: it takes its ports or says why not, and ends with its parent.
STAND_IN = f"""#!{sys.executable}
import os, socket, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
with open(os.environ["RABBITMQ_CONFIG_FILE"]) as file:
    settings = dict(line.strip().split(" = ") for line in file)
try:
    amqp = socket.create_server(("127.0.0.1", int(settings["listeners.tcp.1"].split(":")[1])))
except OSError:
    sys.exit("eaddrinuse")
class Manages(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
management = HTTPServer(("127.0.0.1", int(settings["management.tcp.port"])), Manages)
threading.Thread(target=management.serve_forever, daemon=True).start()
def speak():
    while True:
        client, _ = amqp.accept()
        client.sendall(bytes([1]))
        client.close()
threading.Thread(target=speak, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""

# As if somebody took the ports just after they were found free.
PARENT = """
import sys
from pathlib import Path
from tests import rabbitmq_node, rabbitmq_node_setup as node_setup
from tests.rabbitmq_node import PrivateNode
free, real = iter([True, True, True]), node_setup._is_free
node_setup._is_free = lambda host, port: next(free, None) or real(host, port)
if sys.argv[2:]:
    rabbitmq_node.find_server = lambda: node_setup.Server(Path(sys.argv[2]))
node = PrivateNode(Path(sys.argv[1]))
node.start()
print(node.pid, node.url, flush=True)
sys.stdin.read()
"""


def test_a_taken_port_is_not_insisted_on_and_a_node_goes_when_its_parent_is_killed(
    node: PrivateNode, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "ports.json").write_text((directory / "ports.json").read_text())
    # RabbitMQ itself starts twice here, which is ten seconds of processor time.
    stand_in = [] if THOROUGH else [str(tmp_path)]
    script = tmp_path / "rabbitmq-server"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "node"), *stand_in],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().decode().split()
        assert url.rpartition("@")[2] != node.url.rpartition("@")[2]
        assert is_alive(int(pid))
        parent.kill()
    eventually(lambda: not is_alive(int(pid)))


def test_a_node_that_does_not_come_up_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "rabbitmq-server"
    script.write_text("#!/bin/sh\necho 'erl: not found'\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setattr("tests.rabbitmq_node.find_server", lambda: Server(tmp_path))
    node = PrivateNode(tmp_path / "node")
    with pytest.raises(BrokerError, match=r"(?s)exit status 127.*erl: not found"):
        node.start()
    assert node.pid is None


def test_without_rabbitmq_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr("tests.rabbitmq_node_setup._INSTALLED", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match="apt-get install rabbitmq-server"):
        PrivateNode(tmp_path / "node").start()


def test_a_blocked_broker_is_named_as_the_reason(node: PrivateNode, broker: Broker) -> None:
    tenant = broker.tenant("events")
    broker.publish(tenant, "events", b"before")
    message = Outgoing(
        exchange=names.exchange_name(tenant.tenant_id), routing_key="events", body=b"during"
    )

    def reason() -> str:
        try:
            broker.publishing.publish([message], timeout=0.2)
        except BrokerUnavailableError as error:
            return str(error)
        return ""

    allow_memory(node.directory, LITTLE)
    eventually(lambda: "takes no messages now" in reason())
    allow_memory(node.directory, MUCH)
    broker.publish(tenant, "events", b"after")
    assert broker.ready(tenant.queues()[1].name)[-1] == b"after"
