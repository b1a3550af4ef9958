"""A real RabbitMQ for the tests: one node a run, a fresh virtual host a test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx

from tenantry.broker.rabbitmq.node import PrivateNode
from tests import scratch

ENVIRONMENT = "TENANTRY_TEST_RABBITMQ_URL"
MANAGEMENT_ENVIRONMENT = "TENANTRY_TEST_RABBITMQ_MANAGEMENT_URL"
"""Name the node to every worker of a test run; both set beforehand, that node is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitHost:
    """A virtual host of its own. Users are shared by all hosts: name tenants uniquely."""

    url: str = field(repr=False)
    management_url: str = field(repr=False)
    vhost: str


class RabbitService:
    """The test run's own node, in a temporary directory that goes with it."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._node: PrivateNode | None = None

    def start(self) -> None:
        """Start the node, unless the environment names one."""
        if os.environ.get(ENVIRONMENT) and os.environ.get(MANAGEMENT_ENVIRONMENT):
            return
        self._directory = scratch.made("tenantry-test-rabbitmq-")
        self._node = PrivateNode(self._directory / "node")
        self._node.start()
        os.environ[ENVIRONMENT] = self._node.url
        os.environ[MANAGEMENT_ENVIRONMENT] = self._node.management_url

    def stop(self) -> None:
        """Stop the node this object started, and remove its data."""
        if self._node is not None:
            os.environ.pop(ENVIRONMENT, None)
            os.environ.pop(MANAGEMENT_ENVIRONMENT, None)
            self._node.stop(grace=0)
            self._node = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


@contextmanager
def virtual_host() -> Iterator[RabbitHost]:
    """Give a fresh virtual host of the run's node and delete it, with all in it, afterwards."""
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
        base_url=base, auth=(user, password), timeout=30, trust_env=False
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
