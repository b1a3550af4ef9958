"""A running API on a control socket and TCP, over ports in memory."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from starlette.middleware import Middleware

from tenantry.api.app import create_app
from tenantry.api.routing import way_in
from tenantry.api.services import Services
from tenantry.api.tail import JournalTail
from tenantry.audit.auditor import Auditor
from tenantry.dead_letters.replay import Reprocessing
from tenantry.dead_letters.telling import DeadLetterEvents
from tenantry.domain.commands import CreateTenant
from tenantry.front.serving import FrontApplication
from tenantry.http.identity import Identity
from tenantry.http.listeners import Relay
from tenantry.http.middleware import BoundedBody
from tenantry.http.page_turns import PageTurns
from tenantry.http.server import ApiServer
from tenantry.journal.port import Metadata
from tenantry.metrics.page import MetricsPage
from tenantry.metrics.statistics import Statistics
from tenantry.page.serving import PAGE
from tests import scratch
from tests.api.cluster import FakeCluster
from tests.api.fakes import (
    FakeAccounts,
    FakeControl,
    FakeDeadLetters,
    FakeMessages,
    FakeParts,
    FakeProver,
    FakePublishing,
    FakeQueues,
    FakeStatistics,
    MemoryIdempotencyKeys,
)
from tests.api.pages import RowsReader
from tests.fakes.dead_letters import InMemoryDeadLetterIndex
from tests.fakes.stores import InMemoryEventStore, InMemoryTenantDirectory, InMemoryTenantProjection
from tests.waiting import DEADLINE

CURSOR_KEY = b"a key for cursors in tests"
WAY_IN = {"jwt_secret", "max_body_bytes", "body_timeout", "request_timeout", "max_requests"}
SECRET = "a secret of sixty-four bytes or more, so that it would do for HS512"


class World:
    """Everything the API stands on, in memory, and the application over it."""

    def __init__(self, **options: Any) -> None:
        projection = InMemoryTenantProjection()
        self.journal = InMemoryEventStore(projections=[projection])
        self.directory = InMemoryTenantDirectory(self.journal, projection)
        self.control = FakeControl(self.journal, self.directory)
        self.cluster = FakeCluster()
        self.messages = FakeMessages(self.directory)
        self.publishing = FakePublishing()
        self.dead_letters = FakeDeadLetters()
        self.letters = InMemoryDeadLetterIndex()
        self.accounts = FakeAccounts(self.directory)
        self.queues = FakeQueues()
        self.prover = FakeProver()
        self.statistics = FakeStatistics()
        self.parts = FakeParts()
        self.options = options
        secret = options.get("jwt_secret")
        self.identity = Identity([secret] if secret else [])

    def app(self) -> FastAPI:
        given: dict[str, Any] = {
            "control": self.control,
            "cluster": self.cluster,
            "directory": self.directory,
            "journal": self.journal,
            "parts": self.parts,
            "messages": self.messages,
            "page_reader": RowsReader(self.messages),
            "publishing": self.publishing,
            "idempotency": MemoryIdempotencyKeys(),
            "dead_letters": self.letters,
            "prover": self.prover,
            "statistics": Statistics(self.statistics, now=lambda: self.statistics.now),
            "auditor": Auditor(
                self.accounts, self.queues, lambda _tenant_id: 0, still=0.0, pause=0.0
            ),
            "reprocessing": self.reprocessing(),
            "metrics": MetricsPage(),
            "cursor_key": CURSOR_KEY,
            "default_workers": lambda: 3,
            "identity": self.identity,
            "info": {"version": "0.1.0"},
        } | {key: value for key, value in self.options.items() if key not in WAY_IN}
        return create_app(Services(**given), [*self.way_in(), PAGE])

    def way_in(self, names: AbstractSet[str] = WAY_IN) -> list[Middleware]:
        given = {key: self.options[key] for key in names - {"jwt_secret"} if key in self.options}
        return way_in(self.identity, **given)

    def reprocessing(self, **options: Any) -> Reprocessing:
        return Reprocessing(
            index=self.letters,
            queues=self.dead_letters,
            publishing=self.publishing,
            journal=self.journal,
            events=DeadLetterEvents(self.journal, lambda _: 1),
            publish_timeout=DEADLINE,
            **options,
        )

    def create(self, tenant_id: str, **fields: Any) -> None:
        given: dict[str, Any] = {"name": "Acme", "workers": 3} | fields
        if (former := self.directory.get(tenant_id)) is not None:
            self.messages.vacate(former)
        self.control.execute(
            CreateTenant(tenant_id=tenant_id, **given),
            metadata=Metadata(actor="test"),
            timeout=DEADLINE,
        )


L = TypeVar("L")


class Served:
    """A world that is being served, with clients of both listeners.

    TCP is the front's, as in the daemon, here on a thread: `server` is the one that serves it.
    """

    def __init__(
        self,
        *,
        world: World,
        app: FastAPI,
        api: ApiServer,
        front: FrontApplication,
        server: ApiServer,
        path: Path,
    ) -> None:
        self.world = world
        self.app = app
        self.api = api
        self.front = front
        self.server = server
        self.path = path
        self.url = f"http://127.0.0.1:{server.tcp_port}"
        self.control = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)),
            base_url="http://localhost",
            timeout=DEADLINE,
            trust_env=False,
        )
        self.tcp = httpx.Client(base_url=self.url, timeout=DEADLINE, trust_env=False)

    @property
    def bodies(self) -> BoundedBody:
        """What holds the bodies that come by TCP."""
        return self._layer(BoundedBody)

    @property
    def page_turns(self) -> PageTurns:
        """What has the page's requests that come by TCP wait."""
        return self._layer(PageTurns)

    def _layer(self, kind: type[L]) -> L:
        layer: Any = self.front._outer
        while not isinstance(layer, kind):
            layer = layer._app
        return layer

    def stop(self, timeout: float = DEADLINE) -> bool:
        """Stop both servers in the daemon's order."""
        api_ended = self.api.stop(timeout)
        return self.server.stop(timeout) and api_ended

    def tail(self) -> JournalTail:
        tail = self.app.state.services.tail
        assert isinstance(tail, JournalTail)
        return tail


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a Unix socket's name."""
    directory = scratch.short("tenantry-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def serving(world: World, **options: Any) -> Iterator[Served]:
    """Serve a world on both listeners, on threads of their own."""
    with short_directory() as directory:
        path, relay = directory / "control.sock", Relay()
        app = world.app()
        api = ApiServer(app, socket_path=path, relay=relay, **options)
        # The daemon is the one who says what is late.
        front = FrontApplication(relay.far, world.way_in(WAY_IN - {"request_timeout"}))
        server = ApiServer(front, tcp=("127.0.0.1", 0), **options)
        threads = []
        for one, name in ((api, "api"), (server, "front")):
            one.bind()
            threads.append(threading.Thread(target=one.run, name=name))
            threads[-1].start()
        served = Served(world=world, app=app, api=api, front=front, server=server, path=path)
        try:
            assert api.wait_started(DEADLINE)
            assert server.wait_started(DEADLINE)
            yield served
        finally:
            served.control.close()
            served.tcp.close()
            if world.control.held is not None:
                world.control.held.set()
            for one, thread in zip((api, server), threads, strict=True):
                one.stop()
                thread.join(DEADLINE)
            assert not thread.is_alive()
