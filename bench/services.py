"""What benchmarks stand on: a broker of each kind and a database, which nobody else uses."""

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

Figures = TypeVar("Figures")

WHO = ("daemon", "broker", "database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that runs: its settings for a daemon, and its process, if it has one of its own."""

    settings: Mapping[str, str]
    pid: int | None = None


@contextmanager
def embedded(_directory: Path) -> Iterator[Broker]:
    """Have the database itself be the broker."""
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
    """Say why a kind of broker can't be measured here."""
    if kind != "Apache Iggy":
        return None
    try:
        library()
    except BrokerError as error:
        return str(error)
    if not os.environ.get("IGGY_SERVER"):
        return "set IGGY_SERVER=/path/to/iggy-server"
    return None


class Processor:
    """What processes have used so far, in seconds, with those of their children that are gone."""

    def __init__(self, daemon: int, database: int, broker: int | None) -> None:
        self._roots = {"daemon": daemon, "database": database, "broker": broker}

    def used(self) -> dict[str, float]:
        """Add it up, by who it was."""
        return {
            who: 0.0 if pid is None else _family(psutil.Process(pid))
            for who, pid in self._roots.items()
        } | {"publishers": sum(os.times()[2:4])}

    def each(self, before: Mapping[str, float], count: float) -> dict[str, float]:
        """Give what the servers have used since then, for each of so many."""
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
    """A broker and a database, and where the daemons that come and go on them have their files."""

    directory: Path
    broker: Broker
    db: str
    server: int
    """The process of the database's server."""

    def running(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[Subject]:
        """Start a daemon on them, and end it."""
        return running(self.directory, {**self.broker.settings, **(settings or {})}, self.db)

    def processor(self, daemon: Subject) -> Processor:
        """Give what adds up their processor time, and a daemon's."""
        return Processor(daemon.pid, self.server, self.broker.pid)


def server_of(db: str) -> psutil.Process:
    """Give the process of a database's server."""
    with psycopg.connect(db) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        server = psutil.Process(row[0]).parent()
        assert server is not None
    return server


@contextmanager
def alone(kind: str, home: Path) -> Iterator[Services]:
    """Start a broker of a kind, and a database that notes when something was committed."""
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
    """Make a parser with the options that all comparisons of brokers have."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--broker", choices=list(BROKERS), action="append", help="this one only")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(kinds=kinds)
    return parser


def compared(
    given: argparse.Namespace, measure: Callable[[Services], Figures], what: str = ""
) -> dict[str, Figures]:
    """Measure `what` on each kind of broker that is asked for, one after the other."""
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
    """Give the figures of each broker as one document."""
    return json.dumps({kind: asdict(one) for kind, one in found.items()}, indent=2)


def by_process(figures: Mapping[str, float], digits: int = 0) -> str:
    """Tell figures of processor time by who it was."""
    return ", ".join(f"{who} {figures[who]:.{digits}f}" for who in WHO)
