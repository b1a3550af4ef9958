"""A real RabbitMQ for the tests: one node a run, a fresh virtual host a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx

from tests import on_demand, scratch
from tests.rabbitmq_cluster import PrivateCluster
from tests.rabbitmq_node import PrivateNode
from tests.rabbitmq_node_setup import ALONE, find_server, node_name
from tests.waiting import DEADLINE

ENVIRONMENT = "TENANTRY_TEST_RABBITMQ_URL"
MANAGEMENT_ENVIRONMENT = "TENANTRY_TEST_RABBITMQ_MANAGEMENT_URL"
"""Name the node to every worker of a test run; both set beforehand, that node is used."""

HOME_ENVIRONMENT = "TENANTRY_TEST_RABBITMQ_HOME"
"""Names the directory of the run's own node, for `rabbitmqctl`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitHost:
    """A virtual host of its own. Users are shared by all hosts: name tenants uniquely."""

    url: str = field(repr=False)
    management_url: str = field(repr=False)
    vhost: str


class RabbitService:
    """The test run's own node, in a temporary directory that goes with it."""

    variables = (ENVIRONMENT, MANAGEMENT_ENVIRONMENT, HOME_ENVIRONMENT)

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._node: PrivateNode | None = None

    def start(self) -> None:
        """Start the node, unless it runs or the environment names one."""
        if os.environ.get(ENVIRONMENT) and os.environ.get(MANAGEMENT_ENVIRONMENT):
            return
        self._directory = scratch.made("tenantry-test-rabbitmq-")
        self._node = PrivateNode(self._directory / "node")
        self._node.start()
        os.environ[ENVIRONMENT] = self._node.url
        os.environ[MANAGEMENT_ENVIRONMENT] = self._node.management_url
        os.environ[HOME_ENVIRONMENT] = str(self._directory / "node")

    def stop(self) -> None:
        """Stop the node this object started, and remove its data."""
        if self._node is not None:
            os.environ.pop(ENVIRONMENT, None)
            os.environ.pop(MANAGEMENT_ENVIRONMENT, None)
            os.environ.pop(HOME_ENVIRONMENT, None)
            self._node.stop(grace=0)
            self._node = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


@contextmanager
def virtual_host() -> Iterator[RabbitHost]:
    """Give a fresh virtual host of the run's node and delete it, with all in it, afterwards."""
    on_demand.ensure("rabbitmq")
    with virtual_host_of(os.environ[ENVIRONMENT], os.environ[MANAGEMENT_ENVIRONMENT]) as host:
        yield host


@contextmanager
def virtual_host_of(url: str, management_url: str) -> Iterator[RabbitHost]:
    """Give a fresh virtual host of any node and delete it, with all in it, afterwards."""
    vhost = f"test-{uuid.uuid4().hex[:12]}"
    parts = urlsplit(management_url)
    base = f"{parts.scheme}://{parts.hostname}:{parts.port}"
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    with httpx.Client(
        base_url=base, auth=(user, password), timeout=DEADLINE, trust_env=False
    ) as management:
        management.put(f"/api/vhosts/{vhost}", json={}).raise_for_status()
        path = f"/api/permissions/{vhost}/{quote(user, safe='')}"
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        management.put(path, json=everything).raise_for_status()
        try:
            yield RabbitHost(
                url=urlunsplit(urlsplit(url)._replace(path=f"/{vhost}")),
                management_url=management_url,
                vhost=vhost,
            )
        finally:
            management.delete(f"/api/vhosts/{vhost}").raise_for_status()


def home() -> Path | None:
    """Give the directory of the run's own node, None where the run's is somebody else's."""
    on_demand.ensure("rabbitmq")
    named = os.environ.get(HOME_ENVIRONMENT)
    return None if named is None else Path(named)


@contextmanager
def own_node() -> Iterator[PrivateNode]:
    """Run a node beside the run's, which may be killed and starved."""
    with scratch.directory("tnt-mq-") as directory:
        node = PrivateNode(directory / "node")
        try:
            node.start()
            yield node
        finally:
            node.stop(grace=0)


@contextmanager
def own_cluster() -> Iterator[PrivateCluster]:
    """Run a cluster of three nodes, each of which may be killed."""
    with scratch.directory("tnt-mq-") as directory, PrivateCluster(directory) as cluster:
        yield cluster


def evaluate(home: Path, expression: str) -> None:
    """Have the node in a directory evaluate an Erlang expression with a full stop, which gives ok.

    Erlang's own small program does it for nothing; `rabbitmqctl`, where there is no such, takes
    a second of processor time to load.
    """
    erl_call = shutil.which("erl_call")
    if erl_call is None or find_server().root is not None:
        rabbitmqctl(home, "eval", expression)
        return
    done = subprocess.run(
        [
            erl_call,
            *("-address", f"127.0.0.1:{_distribution(home)}"),
            *("-c", (home / ".erlang.cookie").read_text()),
            "-e",
        ],
        input=f"{expression}\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stdout.strip() == "{ok, ok}", f"{expression}: {done.stdout}{done.stderr}"


MUCH, LITTLE = "0.4", "0.00001"
"""Shares of the machine's memory: with the smaller one the broker takes nothing in."""


def allow_memory(home: Path, share: str) -> None:
    """Set the share of memory from which on the node in a directory raises its alarm."""
    evaluate(home, f"vm_memory_monitor:set_vm_memory_high_watermark({share}).")


def _distribution(home: Path) -> int:
    return int(json.loads((home / "ports.json").read_text())["distribution"])


def rabbitmqctl(home: Path, *arguments: str) -> str:
    """Give an operator's command to the node in a directory, which no port mapper knows."""
    done = subprocess.run(
        [
            *find_server().command("rabbitmqctl", home=home),
            "--longnames",
            "-n",
            node_name(ALONE),
            *arguments,
        ],
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "RABBITMQ_CONF_ENV_FILE": f"{home}/rabbitmq-env.conf",
            "RABBITMQ_CTL_ERL_ARGS": "-dist_listen false -start_epmd false"
            f" -erl_epmd_port {_distribution(home)}",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, f"rabbitmqctl {arguments[0]}: {done.stderr or done.stdout}"
    return done.stdout
