"""A RabbitMQ cluster of three private nodes on this machine."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from tenantry.urls import at_address
from tests.rabbitmq_node import PrivateNode
from tests.rabbitmq_node_setup import NodeFiles, choose_ports, prepare

HOSTS: Final = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
"""One address a node: they find each other by the same port. All of 127/8 is this machine."""


class PrivateCluster:
    """Three nodes; each may be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.nodes = [PrivateNode(directory / host, host=host, peers=HOSTS) for host in HOSTS]

    @property
    def url(self) -> str:
        """The AMQP URL of the admin user at the last node, for who knows one address only."""
        return self.nodes[-1].url

    @property
    def management_url(self) -> str:
        """The URL of the management API of the last node."""
        return self.nodes[-1].management_url

    def everywhere(self, url: str) -> str:
        """Give one of these URLs, or one with another path, with the addresses of all nodes."""
        own = urlsplit(self.nodes[-1].management_url)
        management = urlsplit(url).scheme == own.scheme
        places = [
            urlsplit(node.management_url if management else node.url).netloc.rpartition("@")[2]
            for node in self.nodes
        ]
        return at_address(url, ",".join(places))

    def __enter__(self) -> Self:
        first, *others = (
            NodeFiles(directory=node.directory, host=host, peers=HOSTS)
            for node, host in zip(self.nodes, HOSTS, strict=True)
        )
        prepare(first)
        choose_ports(first)
        for files in others:
            files.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for one in ("cookie", "password", "ports"):
                # The cookie is what nodes know each other by; the rest makes their URLs alike.
                shutil.copy2(getattr(first, one), getattr(files, one))
        try:
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(PrivateNode.start, self.nodes))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.stop(grace=0), self.nodes))
