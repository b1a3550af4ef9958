"""The ledger finds what it is there to find: each kind of wrong is put there by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import psycopg
import pytest

from tenantry.database.pool import Database
from tenantry.messages.port import Incoming
from tenantry.messages.postgres import PostgresMessageStore
from tests.ledger import DEFAULT, KEY_HEADER, Audit, Draft, Findings, Record
from tests.ledger.entries import Sent, entry, meaning
from tests.ledger.removing import RemovingAudit
from tests.services_rabbitmq import RabbitHost

TENANTS = ("acme", "globex")


def draft(key: str, body: bytes = b'{"n": 1}') -> Draft:
    return Draft(key=key, message_id=key, body=body, content_type="application/json")


class Scene:
    """Two tenants with a stored message each, `acme-1` and `globex-1`, and empty dead letters."""

    def __init__(self, database: Database, database_url: str, host: RabbitHost) -> None:
        self.store = PostgresMessageStore(database)
        self.host = host
        self.database_url = database_url
        self.audit = Audit(database_url, host.url)
        self.sent = {one: {f"{one}-1": entry(draft(f"{one}-1"), DEFAULT)} for one in TENANTS}
        self.connection = pika.BlockingConnection(pika.URLParameters(host.url))
        self.channel = self.connection.channel()
        # What is judged is read by another connection: it has to lie there by then.
        self.channel.confirm_delivery()
        for tenant_id in TENANTS:
            self.store.create_partition(tenant_id)
            self.channel.queue_declare(f"tenant_{tenant_id}_dead_letters")
            self.put(tenant_id, draft(f"{tenant_id}-1"))

    def put(self, tenant_id: str, one: Draft, topic: str = "default") -> None:
        message = Incoming(
            id=one.message_id,
            topic=topic,
            partition=0,
            body=one.body,
            content_type=one.content_type,
            headers=None,
            published_at_ms=None,
        )
        assert self.store.store(tenant_id, [message]).stored == 1

    def bury(self, tenant_id: str, one: Draft) -> None:
        properties = pika.BasicProperties(message_id=one.message_id, content_type=one.content_type)
        self.channel.basic_publish("", f"tenant_{tenant_id}_dead_letters", one.body, properties)

    def judge(self, confirmed: int = 1) -> Findings:
        """Compare with as many confirms a tenant."""
        sent = Sent({one: [entries] for one, entries in self.sent.items()})
        self.audit.follow(sent)
        self.audit.look_into_queues(sent.tenants, {})
        keys = {(one, f"{one}-{n}") for one in TENANTS for n in range(1, confirmed + 1)}
        return self.audit.judge(sent, keys)

    def execute(self, query: str) -> None:
        with psycopg.connect(self.database_url) as connection:
            connection.execute(query)


@pytest.fixture
def scene(database: Database, database_url: str, rabbitmq: RabbitHost) -> Iterator[Scene]:
    made = Scene(database, database_url, rabbitmq)
    yield made
    made.connection.close()


def test_what_adds_up_is_clean(scene: Scene) -> None:
    scene.sent["acme"]["acme-2"] = entry(draft("acme-2"), DEFAULT)
    assert scene.judge().clean, "sent, not confirmed and not there is no loss"
    scene.put("acme", draft("acme-2", b'{ "n":1.0e0 }'))
    assert scene.judge().clean, "the same said in other words"


WRONGS: dict[str, Callable[[Scene], object]] = {
    "missing": lambda scene: scene.sent["acme"].pop("acme-2", None),
    "unexpected": lambda scene: scene.put("acme", draft("nobody's")),
    "foreign": lambda scene: scene.bury("globex", draft("acme-1")),
    "altered": lambda scene: scene.put("acme", draft("acme-2", b'{"n": 2}')),
    "doubled": lambda scene: scene.bury("acme", draft("acme-1")),
}


@pytest.mark.parametrize("kind", WRONGS)
def test_each_kind_of_wrong_is_found(scene: Scene, kind: str) -> None:
    assert scene.judge().clean
    for one in TENANTS:
        scene.sent[one][f"{one}-2"] = entry(draft(f"{one}-2"), DEFAULT)
    WRONGS[kind](scene)
    found = scene.judge(confirmed=2 if kind == "missing" else 1)
    assert getattr(found, kind), str(found)


def test_a_row_that_vanishes_and_one_in_another_place_are_found(scene: Scene) -> None:
    assert scene.judge().clean
    scene.sent["acme"]["acme-2"] = entry(draft("acme-2"), DEFAULT)
    scene.put("acme", draft("acme-2"), topic="logs")
    assert scene.judge().altered
    scene.execute("DELETE FROM public.messages WHERE id = 'globex-1'")
    assert scene.judge().unexpected


def test_a_row_behind_what_its_sender_published_later_is_found_where_there_is_order(
    scene: Scene,
) -> None:
    for number, name in ((1, "acme-3"), (2, "acme-2")):
        scene.sent["acme"][name] = entry(draft(name), DEFAULT, sender="one", number=number)
    scene.put("acme", draft("acme-2"))
    scene.put("acme", draft("acme-3"))
    assert scene.judge().clean
    scene.audit = Audit(scene.database_url, ordered={DEFAULT.topic})
    assert scene.judge().disordered == [("acme", "acme-3", 1, 2)]


def test_a_dead_letter_counts_as_kept_unless_its_bytes_differ(scene: Scene) -> None:
    bad = Draft(key="acme-2", message_id="acme-2", body=b"\x00", fate="dead_lettered")
    scene.sent["acme"]["acme-2"] = entry(bad, DEFAULT)
    scene.bury("acme", bad)
    assert scene.audit.missing({("acme", "acme-2")})
    assert scene.judge().clean
    assert not scene.audit.missing({("acme", "acme-2")})
    scene.bury("acme", Draft(key="acme-2", message_id="acme-2", body=b"\x01"))
    assert scene.judge().altered


def test_what_was_removed_counts_as_kept_unless_it_is_there_again_or_was_only_deleted(
    scene: Scene,
) -> None:
    scene.audit = RemovingAudit(scene.database_url, scene.host.url)
    for step in (
        "SELECT tenantry.turn_remembered()",
        "SELECT tenantry.begin_removing('acme')",
        (
            "INSERT INTO tenantry.tenants (id, version, lifecycle, state, created_at, updated_at)"
            " VALUES ('acme', 1, 'active', '{\"limits\": {\"retention_rows\": 0}}', now(), now())"
        ),
        "CREATE TABLE public.kept AS SELECT * FROM public.messages WHERE tenant_id = 'acme'",
        "SELECT tenantry.remove_messages('acme', 10)",
    ):
        scene.execute(step)
    assert scene.judge().clean
    scene.execute("INSERT INTO public.messages SELECT * FROM public.kept")
    assert scene.judge().doubled
    scene.execute("DELETE FROM public.messages")
    found = scene.judge()
    assert (found.doubled, found.unexpected) == (
        [], [("globex", "stored, removed", (1, 0), 0, 0)]
    )  # fmt: skip


def test_dead_letters_and_queues_of_the_embedded_broker_count_as_rabbitmqs_do(
    database: Database, database_url: str
) -> None:
    bad = Draft(key="acme-1", message_id="acme-1", body=b"\x00", fate="dead_lettered")
    sent = Sent({"acme": [{"acme-1": entry(bad, DEFAULT), "acme-2": entry(bad, DEFAULT)}]})
    confirmed = {("acme", "acme-1"), ("acme", "acme-2")}
    audit = Audit(database_url)
    queues = {"acme": ["tenant_acme_queue"]}
    audit.look_into_queues(sent.tenants, queues)
    assert audit.judge(sent, confirmed).missing == sorted(confirmed)
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO tenantry.queues (name, tenant_id, topic, partition)"
            " VALUES ('tenant_acme_queue', 'acme', 'default', 0)"
        )
        connection.execute(
            "INSERT INTO tenantry.queued (segment, queue, seq, published_at_ms, id, body)"
            " SELECT 0, id, 2, 0, 'acme-2', '\\x00' FROM tenantry.queues"
        )
        reject = (
            "INSERT INTO tenantry.rejected"
            " (seq, tenant_id, topic, partition, published_at_ms, headers, body)"
            " VALUES (%s, 'acme', 'default', 0, 0, %s, %s)"
        )
        headers = json.dumps({KEY_HEADER: "acme-1"})
        connection.execute(reject, [1, headers, b"\x00"])
        audit.look_into_queues(sent.tenants, queues)
        assert audit.judge(sent, confirmed).clean
        assert (audit.dead_lettered, audit.waiting) == (1, 1)
        connection.execute(reject, [3, headers, b"\x01"])
    audit.look_into_queues(sent.tenants, queues)
    assert audit.judge(sent, confirmed).altered


def test_the_command_checks_what_a_file_says_was_confirmed(scene: Scene, tmp_path: Path) -> None:
    record = Record(tmp_path / "ledger.jsonl")
    for tenant_id, entries in scene.sent.items():
        for key, one in entries.items():
            record.sent(tenant_id, key, one)
            record.confirmed(tenant_id, [key])
    assert check(scene, tmp_path / "ledger.jsonl") == (0, True, 0)
    record.sent("acme", "acme-2", scene.sent["acme"]["acme-1"])
    record.confirmed("acme", ["acme-2"])
    record.close()
    assert check(scene, tmp_path / "ledger.jsonl") == (1, False, 1)


def check(scene: Scene, file: Path) -> tuple[int, bool, int]:
    """Run the command; give its exit code, whether it found all well, and what is missing."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.ledger", "check", "--record", str(file), "--json"],
        env={**os.environ, "RABBITMQ_URL": scene.host.url, "DATABASE_URL": scene.database_url},
        capture_output=True,
        check=False,
    )
    shown = json.loads(ended.stdout)
    return ended.returncode, shown["clean"], shown["missing"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.0", "1", True),
        ("-0.0", "0", True),
        ("1e400", "1" + "0" * 400, True),
        ("0.1", "0.10000000000000000001", False),
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1}', True),
        ('"\\u00e4"', '"ä"', True),
        ("[1, 2]", "[2, 1]", False),
    ],
)
def test_json_is_the_same_when_it_says_the_same(one: str, other: str, same: bool) -> None:
    assert (meaning(one) == meaning(other)) is same
