"""With the database away every route that needs it answers 503 and says when to come again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tenantry.api.access import TABLE
from tenantry.api.idempotency import PostgresIdempotencyKeys
from tenantry.assembly.backends import Stores
from tenantry.audit.auditor import Auditor
from tenantry.audit.postgres import PostgresAccounts
from tenantry.broker.postgres.publishing import PostgresPublishing
from tenantry.control.port import CommandFailedError
from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.dead_letters.replay import Reprocessing
from tenantry.isolation.postgres import PostgresProbes
from tenantry.isolation.prover import IsolationProver
from tenantry.messages.reader import PostgresPageReader
from tenantry.metrics.postgres import PostgresStatistics
from tenantry.metrics.statistics import Statistics
from tests.api.cluster import FakeCluster
from tests.api.fakes import FakeQueues
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE

WITHOUT_IT = {
    "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /swagger/{asset}",
    "GET /status", "GET /info", "GET /metrics", "GET /overview", "GET /whoami", "POST /drain",
    "POST /stop", "POST /runtime", "POST /login-codes",
}  # fmt: skip
"""What is answered whatever the database does."""

OF_THE_READ_MODEL = {
    "GET /tenants", "GET /tenants/{tenant_id}", "GET /tenants/{tenant_id}/asyncapi.json",
}  # fmt: skip

GIVEN: dict[str, dict[str, Any]] = {
    "POST /tenants": {"json": {"name": "A"}},
    "POST /tenants/{tenant_id}/messages": {"json": {"payload": 1}},
    "PUT /tenants/{tenant_id}/config/concurrency": {"json": {"workers": 5}},
    "PUT /tenants/{tenant_id}/limits": {"json": {"rate": 5}},
    "POST /tenants/{tenant_id}/topics": {"json": {"topics": ["more"]}},
    "POST /tenants/{tenant_id}/dead-letters/replay": {"json": {"ids": ["x"]}},
    "DELETE /tenants/{tenant_id}/dead-letters": {"json": {"ids": ["x"]}},
    "GET /messages": {"params": {"tenant_id": "acme"}},
    "GET /messages/stream": {"params": {"tenant_id": "acme"}},
    "POST /isolation": {"json": {}},
    "POST /tenants/{tenant_id}/move": {"json": {"node": "one"}},
    "PUT /events/parts/{part}/lines": {"json": {"after": 0, "lines": ["{}"]}},
    "POST /events/parts/{part}/archive": {"json": {"digest": "0" * 64, "archive": "here"}},
}
"""What requests have that need more than a path."""


class Away:
    """A port every call of which finds no database, and whose adapter does not translate that."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> Any:
            raise DatabaseUnavailableError(f"postgresql://u:secret@h: no {name}")

        return call


class ClusterAway(FakeCluster):
    """Nodes of which only what is in memory is known."""

    def owners(self, *_: object, **__: object) -> Any:
        raise DatabaseUnavailableError("postgresql://u:secret@h: no nodes")

    listed = set_draining = want = owners


def on_adapters() -> World:
    """Make a world whose read model is in memory, and all else on a database that is away."""
    database = Database("postgresql://u:secret@127.0.0.1:1/d")  # nobody opens it
    stores = Stores.on(database)
    world = World(
        cluster=ClusterAway(),
        journal=stores.journal,
        parts=stores.parts,
        messages=stores.messages,
        page_reader=PostgresPageReader(LoopQueries(database)),
        publishing=PostgresPublishing(database),
        idempotency=PostgresIdempotencyKeys(database),
        dead_letters=stores.dead_letters,
        auditor=Auditor(PostgresAccounts(database), FakeQueues(), lambda _tenant_id: 0),
        statistics=Statistics(PostgresStatistics(database)),
    )
    world.options["prover"] = IsolationProver(
        directory=world.directory,
        journal=stores.journal,
        broker=None,
        database=PostgresProbes(database),
    )
    world.options["reprocessing"] = Reprocessing(
        index=stores.dead_letters,
        queues=world.dead_letters,
        publishing=world.publishing,
        journal=stores.journal,
        events=stores.dead_letter_events,
        publish_timeout=DEADLINE,
    )
    return world


def on_ports() -> World:
    """Make a world whose read model is in memory, and no other port has its database."""
    ports = (
        "journal", "parts", "messages", "page_reader", "publishing", "idempotency", "dead_letters",
        "reprocessing", "auditor", "prover", "statistics",
    )  # fmt: skip
    return World(cluster=ClusterAway(), **{one: Away() for one in ports})


def on_nothing() -> World:
    world = on_ports()
    world.options["directory"] = Away()
    return world


WORLDS = {"adapters": on_adapters, "ports": on_ports, "nothing": on_nothing}


@pytest.fixture(scope="module", params=WORLDS)
def api(request: pytest.FixtureRequest) -> Iterator[Served]:
    world = WORLDS[request.param]()
    world.create("acme", topics=("logs",))
    away = CommandFailedError("it can't be written down")
    away.__cause__ = DatabaseUnavailableError("postgresql://u:secret@h: away")
    world.control.error = away
    with serving(world) as served:
        yield served


@pytest.mark.parametrize("keyed", [False, True], ids=["", "with a key"])
def test_every_route_says_that_it_is_for_now(api: Served, *, keyed: bool) -> None:
    free = set(WITHOUT_IT)
    if isinstance(api.world.options["prover"], IsolationProver):
        free.add("POST /isolation")  # a proof says in its answer who could not be judged
    if "directory" not in api.world.options:
        free |= OF_THE_READ_MODEL
    found = {}
    for method, template in TABLE:
        name = f"{method} {template}"
        if name in free:
            continue
        path = template.replace("{tenant_id}", "acme").replace("{letter_id}", "x")
        path = path.replace("{message_id:any}", "m-1").replace("{part}", "1")
        headers = {"Idempotency-Key": "one"} if keyed and method == "POST" else {}
        given = GIVEN.get(name, {})
        with api.control.stream(method, path, headers=headers, **given) as answer:
            ended = "text/event-stream" in answer.headers["content-type"] or answer.read()
            found[name] = answer.status_code, answer.headers.get("retry-after"), ended
    wrong = {name: one for name, one in found.items() if one[:2] != (503, "1")}
    assert wrong == {}
    assert not any(b"secret" in one[2] for one in found.values())
