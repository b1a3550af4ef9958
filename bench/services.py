"""The services under the benchmarks: a broker of each kind and a database, used by nothing else."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import psycopg
from rich.console import Console

from bench.subject import Subject, running
from tenantry.broker.iggy.client import library
from tenantry.broker.port import BrokerError
from tenantry.database.embedded import EmbeddedPostgres
from tests.iggy_server import PrivateIggy
from tests.rabbitmq_node import PrivateNode
from tests.rabbitmq_node_setup import find_server

Figures = TypeVar("Figures")

WHO = ("daemon", "broker", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running broker: its settings for a daemon, and its process id if it has its own process."""

    settings: Mapping[str, str]
    pid: int | None = None


@contextmanager
def embedded(_directory: Path) -> Iterator[Broker]:
    """Use the database itself as the broker."""
    yield Broker(settings={})


@contextmanager
def rabbitmq(directory: Path) -> Iterator[Broker]:
    """Start a RabbitMQ."""
    with PrivateNode(directory) as node:
        settings = {"RABBITMQ_URL": node.url, "RABBITMQ_MANAGEMENT_URL": node.management_url}
        yield Broker(settings=settings, pid=node.pid)


@contextmanager
def iggy(directory: Path) -> Iterator[Broker]:
    """Start an Iggy server."""
    server = PrivateIggy(Path(os.environ["IGGY_SERVER"]), directory)
    try:
        server.start()
        yield Broker(settings={"BROKER_URL": server.url}, pid=server.pid)
    finally:
        server.stop()


BROKERS: Mapping[str, Callable[[Path], AbstractContextManager[Broker]]] = {
    "embedded": embedded,
    "RabbitMQ": rabbitmq,
    "Apache Iggy": iggy,
}


def missing(kind: str) -> str | None:
    """Return why a kind of broker can't be measured here; None if it can."""
    try:
        if kind == "RabbitMQ":
            find_server()
        if kind != "Apache Iggy":
            return None
        library()
    except BrokerError as error:
        return str(error)
    if not os.environ.get("IGGY_SERVER"):
        return "set IGGY_SERVER=/path/to/iggy-server"
    return None


class Processor:
    """The processor seconds of processes so far, with their ended children's."""

    def __init__(self, daemon: int, database: int, broker: int | None) -> None:
        self._roots = {"daemon": daemon, "database": database, "broker": broker}

    def used(self) -> dict[str, float]:
        """Add up the seconds of each process and its children, by name."""
        return {
            who: 0.0 if pid is None else _family(psutil.Process(pid))
            for who, pid in self._roots.items()
        } | {"publishers": sum(os.times()[2:4])}

    def each(self, before: Mapping[str, float], count: float) -> dict[str, float]:
        """Return the seconds that each server has used since `before`, divided by `count`."""
        after = self.used()
        return {who: (after[who] - before[who]) / count for who in WHO}


def _family(root: psutil.Process) -> float:
    total = 0.0
    for one in (root, *root.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """A broker and a database, and the directory for the files of the daemons on them."""

    directory: Path
    broker: Broker
    db: str
    server: int
    """The process id of the database server."""

    def running(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[Subject]:
        """Start a daemon on the services, and stop it at the end."""
        return running(self.directory, {**self.broker.settings, **(settings or {})}, self.db)

    def processor(self, daemon: Subject) -> Processor:
        """Return the processor times of the services and of a daemon."""
        return Processor(daemon.pid, self.server, self.broker.pid)


def server_of(db: str) -> psutil.Process:
    """Return the process of a database's server."""
    with psycopg.connect(db) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        server = psutil.Process(row[0]).parent()
        assert server is not None
    return server


@contextmanager
def alone(kind: str, home: Path) -> Iterator[Services]:
    """Start a broker of a kind, and a database that records commit times."""
    postgres = EmbeddedPostgres(home / "postgres")
    try:
        with psycopg.connect(postgres.start(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        postgres.stop()
        db = postgres.start()
        server = server_of(db)
        with BROKERS[kind](home / "broker") as broker:
            yield Services(directory=home / "daemon", broker=broker, db=db, server=server.pid)
    finally:
        postgres.stop()


def parser_for(
    name: str, about: str | None, kinds: Sequence[str] = ("embedded", "RabbitMQ")
) -> argparse.ArgumentParser:
    """Make a parser with the options that all comparisons of brokers share."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--broker", choices=list(BROKERS), action="append", help="this one only")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(kinds=kinds)
    return parser


def compared(
    given: argparse.Namespace, measure: Callable[[Services], Figures], what: str = ""
) -> dict[str, Figures]:
    """Measure on each requested kind of broker, one after the other; `what` is for the status."""
    console, found = Console(stderr=True), dict[str, Figures]()
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for number, kind in enumerate(BROKERS):
            if kind not in (given.broker or given.kinds):
                continue
            if (reason := missing(kind)) is not None:
                print(f"without {kind}: {reason}", file=sys.stderr)
                continue
            home = directory / str(number)
            home.mkdir(mode=0o755)
            with console.status(f"{what}{kind}"), alone(kind, home) as services:
                found[kind] = measure(services)
    return found


def as_json(found: Mapping[str, Any]) -> str:
    """Return the figures of each broker as one document."""
    return json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2)


def by_process(figures: Mapping[str, float], digits: int = 0) -> str:
    """Return figures of processor time as text, by process."""
    return ", ".join(f"{who} {figures[who]:.{digits}f}" for who in WHO)
