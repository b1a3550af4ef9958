"""Calls made again with the same `Idempotency-Key`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest

from tenantry.api.idempotency import IdempotencyKeys, PostgresIdempotencyKeys
from tenantry.broker.port import BrokerUnavailableError
from tenantry.database.pool import Database
from tenantry.domain.commands import AbandonProvisioning, CreateTenant
from tenantry.domain.tenant import decide
from tenantry.journal.port import Metadata
from tests.api.fakes import MemoryIdempotencyKeys
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE

KEY = {"Idempotency-Key": "8e03978e"}


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        yield served


def create(api: Served, body: object, key: str = "k") -> httpx.Response:
    return api.control.post("/tenants", json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("body", [{"name": "Acme"}, {"name": "Acme", "id": "acme"}])
def test_a_repeated_creation_makes_one_tenant_and_shows_no_password(
    api: Served, body: dict[str, str]
) -> None:
    first, again = create(api, body), create(api, body)
    assert (first.status_code, again.status_code) == (201, 201)
    made, shown = first.json(), again.json()
    assert made.pop("credentials")["password"] == "shown once"
    assert shown == made
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.control.get("/tenants").json()["data"]) == 1
    rotated = api.control.post(f"/tenants/{made['id']}/credentials/rotate").json()
    assert rotated["credentials"]["password"]


def test_another_body_or_another_key_is_another_call(api: Served) -> None:
    create(api, {"name": "Acme", "id": "acme"})
    reused = create(api, {"name": "Acme", "id": "other"})
    assert reused.status_code == 422
    assert reused.json()["type"].endswith("idempotency-key-reused")
    assert create(api, {"name": "Acme", "id": "acme"}, "another").status_code == 409
    assert (
        create(api, {"name": "A"}, "x").json()["id"] != create(api, {"name": "A"}, "y").json()["id"]
    )


def test_a_tenant_that_was_there_before_is_not_taken_for_one_that_was_made(api: Served) -> None:
    api.world.create("acme")
    for _ in range(2):
        assert create(api, {"name": "Acme", "id": "acme"}).status_code == 409


def test_a_tenant_that_was_deleted_since_is_not_made_anew(api: Served) -> None:
    body = {"name": "Acme", "id": "acme"}
    create(api, body)
    api.control.delete("/tenants/acme")
    assert create(api, body).json()["type"].endswith("tenant-deleted-since")
    api.world.create("acme")  # somebody else
    assert create(api, body).json()["type"].endswith("tenant-deleted-since")


def _begin(api: Served, tenant_id: str, causation_id: str) -> None:
    """Leave a creation half done, as a daemon does that dies in it."""
    command = CreateTenant(tenant_id=tenant_id, name="Acme", workers=3)
    metadata = Metadata(actor="test", causation_id=causation_id)
    api.world.journal.append(
        f"tenant-{tenant_id}", decide(None, command), expected=0, metadata=metadata
    )


def test_a_creation_that_is_under_way_asks_for_patience_and_one_undone_is_made(api: Served) -> None:
    body = {"name": "Acme", "id": "acme"}
    create(api, body, "k")
    cause = api.world.journal.read_stream("tenant-acme")[0].metadata.causation_id
    assert cause is not None
    with serving(World()) as after:
        _begin(after, "acme", cause)
        waiting = create(after, body, "k")
        assert (waiting.status_code, waiting.headers["retry-after"]) == (409, "1")
        assert waiting.json()["type"].endswith("idempotency-in-progress")
        undone = AbandonProvisioning(tenant_id="acme", reason="died")
        after.world.control._take(undone, Metadata(actor="test"))
        made = create(after, body, "k")
        assert made.status_code == 201
        assert made.json()["credentials"]


def test_the_same_creation_many_times_at_once_makes_one_tenant(api: Served) -> None:
    def call(_: int) -> httpx.Response:
        return httpx.post(
            f"{api.url}/tenants",
            json={"name": "Acme"},
            headers=KEY,
            trust_env=False,
            timeout=DEADLINE,
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(8)))
    assert {one.status_code for one in answers} <= {201, 409}
    assert sum("credentials" in one.json() for one in answers) == 1
    assert len(api.control.get("/tenants").json()["data"]) == 1


def test_a_repeated_publication_has_the_same_ids(api: Served) -> None:
    api.world.create("acme")
    several = [{"payload": 1}, {"payload": 2, "id": "mine"}, {"payload": 1}]

    def send(body: object) -> httpx.Response:
        return api.control.post("/tenants/acme/messages", json=body, headers=KEY)

    first, again = send(several), send(several)
    assert first.json() == again.json()
    ids = first.json()["ids"]
    assert ids[1] == "mine"
    assert len(set(ids)) == 3
    sent = [one.message_id for one in api.world.publishing.sent]
    assert sent == ids * 2  # the store takes each id once
    refused = send([{"payload": 2}])
    assert refused.status_code == 422
    assert len(api.world.publishing.sent) == 6


def test_a_key_belongs_to_its_call(api: Served) -> None:
    for tenant_id in ("acme", "other"):
        api.world.create(tenant_id)
        answer = api.control.post(
            f"/tenants/{tenant_id}/messages", json={"payload": tenant_id}, headers=KEY
        )
        assert answer.status_code == 202
    assert create(api, {"name": "A"}, KEY["Idempotency-Key"]).status_code == 201


def test_a_publication_that_failed_may_be_repeated(api: Served) -> None:
    api.world.create("acme")
    api.world.publishing.error = BrokerUnavailableError("away")
    call = {"json": {"payload": 1}, "headers": KEY}
    assert api.control.post("/tenants/acme/messages", **call).status_code == 503
    api.world.publishing.error = None
    assert api.control.post("/tenants/acme/messages", **call).status_code == 202


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
def test_a_bad_key_is_422(api: Served, key: str) -> None:
    answer = api.control.post(
        "/tenants", json={"name": "A"}, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert answer.status_code == 422
    assert "idempotency-key" in answer.json()["detail"].lower()


# Where keys are kept.


@pytest.fixture(params=["memory", "postgres"])
def keys(request: pytest.FixtureRequest) -> Callable[[int], IdempotencyKeys]:
    if request.param == "memory":
        return MemoryIdempotencyKeys
    database: Database = request.getfixturevalue("database")
    return lambda most: PostgresIdempotencyKeys(database, most=most)


def test_a_key_is_kept_with_what_it_was_first_used_for(
    keys: Callable[[int], IdempotencyKeys],
) -> None:
    kept = keys(100)
    assert kept.claim(b"acme", b"k", b"one")
    assert kept.claim(b"acme", b"k", b"one")
    assert not kept.claim(b"acme", b"k", b"two")
    assert kept.claim(b"acme", b"l", b"two")


def test_the_oldest_keys_are_forgotten_when_there_are_too_many(
    keys: Callable[[int], IdempotencyKeys],
) -> None:
    kept = keys(5)
    for number in range(20):
        assert kept.claim(b"acme", b"%d" % number, b"one")
    assert not kept.claim(b"acme", b"19", b"two")
    assert kept.claim(b"acme", b"0", b"two")


def test_an_owners_many_keys_push_out_none_of_anothers(
    keys: Callable[[int], IdempotencyKeys],
) -> None:
    kept = keys(5)
    assert kept.claim(b"globex", b"k", b"one")
    for number in range(20):
        assert kept.claim(b"acme", b"%d" % number, b"one")
    assert not kept.claim(b"globex", b"k", b"two")


def test_of_many_at_once_one_use_wins(keys: Callable[[int], IdempotencyKeys]) -> None:
    kept, begin = keys(100), threading.Barrier(6)

    def claim(number: int) -> bool:
        begin.wait(DEADLINE)
        return kept.claim(b"acme", b"k", b"%d" % number)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(claim, range(6))).count(True) == 1


def test_keys_outlive_the_daemon_and_are_forgotten_after_their_time(database: Database) -> None:
    PostgresIdempotencyKeys(database).claim(b"acme", b"k", b"one")
    assert not PostgresIdempotencyKeys(database).claim(b"acme", b"k", b"two")
    short = PostgresIdempotencyKeys(database, keep=timedelta(0))
    assert short.claim(b"acme", b"k", b"two")
    with database.connection() as connection:
        row = connection.execute("SELECT count(*) FROM tenantry.idempotency_keys").fetchone()
    assert row == (1,)
