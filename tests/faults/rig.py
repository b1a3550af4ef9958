"""The base of every experiment: services, the daemon, tenants, their clients, the ledger."""

from __future__ import annotations

import json
import math
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import httpx
import psutil
from psycopg.conninfo import conninfo_to_dict

from tenantry.database.conninfo import url_for
from tests import services_iggy, services_postgres, services_rabbitmq
from tests.acceptance.program import Program, Tenant
from tests.faults.figures import Figures
from tests.faults.proxy import Proxy
from tests.faults.services import Postgres, address_of, own_postgres
from tests.iggy_server import PrivateIggy
from tests.ledger import DEFAULT, LIGHT, Draft, Ledger, Maker, Record, Target, mixed
from tests.rabbitmq_cluster import PrivateCluster
from tests.rabbitmq_node import PrivateNode
from tests.services_rabbitmq import RabbitHost
from tests.waiting import DEADLINE, eventually

Broker: TypeAlias = Literal["rabbitmq", "embedded", "iggy"]

PATIENCE = DEADLINE
"""Seconds that a single wait may take before the experiment gives up."""

SAMPLE_EVERY = 0.25

FEW = 10
"""Most confirms that a light experiment waits for."""


class Memory:
    """Samples the daemon's resident set on a thread of its own."""

    def __init__(self, program: Program, figures: Figures) -> None:
        self._program = program
        self._figures = figures
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(5)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            try:
                rss = psutil.Process(self._program.process.pid).memory_info().rss / 1e6
            except (psutil.Error, AssertionError):
                continue
            self._figures.rss_first = self._figures.rss_first or rss
            self._figures.rss_peak = max(self._figures.rss_peak, rss)
            self._figures.rss_last = rss or self._figures.rss_last


@dataclass(slots=True, kw_only=True)
class Rig:
    """An experiment's tools. `node` and `postgres` are set if it has asked for its own."""

    program: Program
    ledger: Ledger
    figures: Figures
    random: random.Random
    say: Callable[[str], None]
    record: Path
    broker: Broker = "rabbitmq"
    node: PrivateNode | PrivateCluster | PrivateIggy | None = None
    postgres: Postgres | None = None
    light: bool = False
    beside: str = ""
    """The URL of the daemon's embedded database, for clients beside the daemon."""
    stack: ExitStack = field(default_factory=ExitStack)
    tenants: list[Tenant] = field(default_factory=list)

    @property
    def iggy_url(self) -> str:
        """Iggy's URL, without a proxy before it."""
        return services_iggy.url() if self.node is None else self.node.url

    def proxy_to_database(self, **watch: object) -> Proxy:
        """Put a proxy before the database, for the daemon alone."""
        url = self.program.database_url
        proxy = self.stack.enter_context(Proxy(address_of(url), **watch))  # type: ignore[arg-type]
        parts = urlsplit(url)
        user = parts.username or "postgres"
        self.program.settings["DATABASE_URL"] = urlunsplit(
            parts._replace(
                netloc=f"{user}@127.0.0.1:{proxy.port}", query="sslmode=disable&gssencmode=disable"
            )
        )
        return proxy

    def proxy_to_broker(self) -> Proxy:
        """Put a proxy before the broker, for the daemon alone."""
        url = self.program.host.url
        proxy = self.stack.enter_context(Proxy(address_of(url)))
        parts = urlsplit(url)
        netloc = f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"
        self.program.settings["RABBITMQ_URL"] = urlunsplit(parts._replace(netloc=netloc))
        return proxy

    def start(
        self, *, tenants: int | None = None, topic: object = "events", **settings: str
    ) -> None:
        """Start the daemon and make tenants with a topic of two partitions each."""
        self.start_again(**settings)
        for number in range(tenants or (2 if self.light else 3)):
            made = self.program.create(f"t{number}", topics=[topic], partitions=2)
            self.tenants.append(made)

    def start_again(self, **settings: str) -> None:
        """Start the daemon; a busy machine may take its time."""
        self.program.spawn(**settings)
        self.program.wait_ready(PATIENCE)

    @contextmanager
    def load(
        self, *, rate: float = 200, make: Maker = mixed, limit: int | None = None
    ) -> Iterator[None]:
        """Publish for every tenant, to its queues in turn; at the end all is confirmed."""
        everyone = [(one.id, self._directly(one.amqp_url)) for one in self.tenants]
        with self.ledger.publishing(
            everyone, TARGETS, rate=rate, make=make, limit=limit, patience=PATIENCE
        ):
            yield

    def rounds(self, count: int) -> Iterator[int]:
        """Count and announce rounds; after each, sample the daemon's memory."""
        for number in range(1, count + 1):
            self.say(f"{self.figures.experiment}: round {number} of {count}")
            yield number
            self.figures.rounds = number
            if self.program.running:
                process = self.program.process.pid
                self.figures.resident(process, psutil.Process(process).memory_info().rss / 1e6)

    def count_duplicates(self) -> None:
        """Record how many messages were delivered again, in all of the daemon's runs."""
        runtime = [self.program.runtime(one) for one in self.tenants]
        self.figures.duplicates = sum(int(one["duplicates"]) for one in runtime)

    def wait_for_some(self, most: int = 400) -> None:
        """Wait until the clients have a random number of further confirms, at most `most`."""
        most = min(most, FEW) if self.light else most
        self.ledger.wait_confirmed(self.random.randint(1, most), timeout=PATIENCE)

    def moment(self, longest: float) -> None:
        """Sleep for a random time, at most `longest`: a fault may come at any point."""
        time.sleep(self.random.uniform(0, longest))

    def recover(self, since: float | None = None, *, serves: bool = False) -> None:
        """Wait until the daemon is ready and stores new messages; record how long ready took.

        With `serves`, check that the first request after that is not refused.
        """
        since = time.monotonic() if since is None else since
        eventually(
            lambda: self.program.status_of("/readyz") == 200, timeout=PATIENCE, what="readyz 200"
        )
        ready = time.monotonic() - since
        if serves:
            self.first_publish()
        stored = self.ledger.follow()
        # The clients have to reconnect, too.
        self.ledger.wait_confirmed(1, timeout=PATIENCE)
        eventually(lambda: self.ledger.follow() > stored, timeout=PATIENCE, what="new rows")
        self.figures.recovered(ready)

    def stores_again(self) -> float:
        """Wait until a new message is stored; return the seconds that took."""
        began = time.monotonic()
        stored = self.ledger.follow()
        eventually(lambda: self.ledger.follow() > stored, timeout=PATIENCE, what="new rows")
        return time.monotonic() - began

    def first_publish(self) -> None:
        """Check that a daemon that says it is ready takes a message by HTTP over TCP."""
        key = str(uuid.UUID(int=self.random.getrandbits(128)))
        content = {"first": key}
        tenant_id = self.tenants[0].id
        port = self.program.get("/info")["server"]["port"]
        answer = httpx.post(
            f"http://127.0.0.1:{port}/tenants/{tenant_id}/messages",
            json={"payload": content, "id": key},
            timeout=PATIENCE,
            trust_env=False,
        )
        draft = Draft(
            key=key,
            message_id=key,
            body=json.dumps(content).encode(),
            content_type="application/json",
        )
        self.ledger.note(tenant_id, draft, confirmed=answer.status_code == HTTPStatus.ACCEPTED)
        if answer.status_code != HTTPStatus.ACCEPTED:
            self.figures.wrong.append(f"ready, and refuses the first message: {answer.text}")

    def wait_not_ready(self) -> float:
        """Wait until the daemon says that it is not ready; return the seconds that took."""
        began = time.monotonic()
        eventually(
            lambda: self.program.status_of("/readyz") == 503, timeout=PATIENCE, what="readyz 503"
        )
        return time.monotonic() - began

    def caught_up(self) -> None:
        """Wait until every message confirmed by now has arrived."""
        left = self.ledger.promised()

        def arrived() -> bool:
            # Messages that have arrived are not asked for again: there may be a million.
            nonlocal left
            left = self.ledger.outstanding(left)
            return not left

        eventually(arrived, timeout=PATIENCE, what="all that was confirmed")

    def nothing_is_pending(self) -> None:
        """Check that the daemon itself reports nothing as pending."""

        def pending() -> int | None:
            told = [
                self.program.get(f"/tenants/{one.id}")["messages_pending"] for one in self.tenants
            ]
            return None if None in told else sum(told)

        eventually(lambda: pending() == 0, timeout=PATIENCE, what="nothing pending")

    def queues_are_empty(self) -> None:
        """Check that the queues are empty, once the daemon has ended gracefully.

        Iggy has no queues: messages below the stored offset stay in its topics.
        """
        if self.broker == "iggy":
            return
        queues = [name for one in self.tenants for name in queues_of(one)]
        left = self.program.ready_messages(*queues)
        if left:
            self.figures.wrong.append(f"{left} messages lie in the queues of a drained daemon")

    def _directly(self, url: str) -> str:
        """Return a client's URL without the proxy."""
        if self.broker == "embedded":
            own = conninfo_to_dict(url)
            place = conninfo_to_dict(self.program.database_url or self.beside)
            return url_for(place, str(own["user"]), str(own["password"]))
        target = urlsplit(self.iggy_url if self.broker == "iggy" else self.program.host.url)
        parts = urlsplit(url)
        netloc = f"{parts.username}:{parts.password}@{target.hostname}:{target.port}"
        return urlunsplit(parts._replace(netloc=netloc))


TARGETS: Sequence[Target] = (
    DEFAULT,
    Target(routing_key="events", topic="events", partition=0),
    Target(routing_key="events.1", topic="events", partition=1),
)


def queues_of(tenant: Tenant) -> list[str]:
    return [tenant.queue, f"{tenant.stream}.events.0", f"{tenant.stream}.events.1"]


@contextmanager
def rig(
    name: str,
    *,
    seed: int,
    say: Callable[[str], None],
    node: PrivateNode | PrivateCluster | PrivateIggy | None = None,
    own_database: bool = False,
    disk_mb: int | None = None,
    standby: bool = False,
    broker: Broker = "rabbitmq",
    light: bool = False,
) -> Iterator[Rig]:
    """Set everything up, and tear it down at the end, whatever has happened.

    The experiment shares the test run's services unless it needs its own; `node` is a broker that
    it may break. The embedded broker is the database's server.
    """
    with ExitStack() as stack:
        postgres = None
        if own_database or standby:
            postgres = stack.enter_context(own_postgres(disk_mb=disk_mb, standby=standby))
        host: RabbitHost | None = None
        if broker == "rabbitmq":
            assert not isinstance(node, PrivateIggy)
            host = stack.enter_context(
                services_rabbitmq.virtual_host()
                if node is None
                else services_rabbitmq.virtual_host_of(node.url, node.management_url)
            )
        server = services_postgres.admin_url() if postgres is None else postgres.url
        database_url = stack.enter_context(services_postgres.database(server))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tnt-ledger-")))
        file = directory / "ledger.jsonl"
        record = Record(file)
        stack.callback(record.close)
        program = stack.enter_context(Program(host, database_url))
        if standby:
            # Only clients beside the daemon need to be told how long to wait for one of the two.
            program.settings["DATABASE_URL"] = database_url.replace("&connect_timeout=2", "")
        if broker == "iggy":
            program.settings["BROKER_URL"] = services_iggy.url() if node is None else node.url
        figures = Figures(experiment=name, seed=seed, timed=not light)
        memory = Memory(program, figures)
        stack.callback(memory.stop)
        memory.start()
        yield Rig(
            program=program,
            ledger=Ledger(
                database_url=database_url,
                broker_url=host and host.url,
                record=record,
                most=LIGHT if light else math.inf,
            ),
            light=light,
            figures=figures,
            random=random.Random(seed),
            say=say,
            record=file,
            broker=broker,
            node=node,
            postgres=postgres,
            stack=stack.enter_context(ExitStack()),
        )
