"""The proof of isolation on Apache Iggy: it holds, and it finds tenants that reach others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import apache_iggy as iggy
import psycopg
import pytest

from tenantry.broker.iggy.client import Access, Session
from tenantry.broker.iggy.topology import consumer_name, producer_name
from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_metrics import scrape
from tests.waiting import eventually


@pytest.fixture
def program(iggy: str, database_url: str) -> Iterator[Program]:
    """A daemon on the test run's Iggy that repairs no drift meanwhile."""
    with Program(None, database_url) as made:
        made.settings = {"BROKER_URL": iggy, "TENANTRY_RECONCILE_EVERY_SECONDS": "86400"}
        yield made
        made.check_no_traceback()


@pytest.fixture
def root(iggy: str) -> Iterator[Session]:
    session = Session(Access.of(iggy))
    yield session
    session.close()


class Server:
    """The server as its administrator sees and changes it."""

    def __init__(self, root: Session, program: Program) -> None:
        self.root = root
        installation = program.get("/info")["installation"]
        self._digest = hashlib.sha256(installation.encode()).hexdigest()[:12]

    def stream(self, tenant: Tenant) -> Any:
        return self.root.call(lambda client: client.get_stream(tenant.stream))

    def topic(self, tenant: Tenant, topic: str) -> int:
        return next(int(one.id) for one in self.stream(tenant).topics if one.name == topic)

    def allow(
        self, user: str, streams: dict[int, iggy.StreamPermissions], **everywhere: bool
    ) -> None:
        """Grant a user these rights only."""
        rights = iggy.Permissions(iggy.GlobalPermissions(**everywhere), streams)
        self.root.call(lambda client: client.update_permissions(user, rights))

    def probes(self) -> list[str]:
        """Return the names of this daemon's probes: other tests use the server as well."""
        users = self.root.call(lambda client: client.get_users())
        return [one.username for one in users if self._digest in one.username]

    def in_marks(self, *tenants: Tenant) -> list[int]:
        return [
            topic.messages_count
            for tenant in tenants
            for topic in self.stream(tenant).topics
            if topic.name.startswith("tenantry.")
        ]


SEND = iggy.StreamPermissions(send_messages=True, read_topics=False)
READ = iggy.StreamPermissions(poll_messages=True, read_topics=False)
JOIN = iggy.StreamPermissions(poll_messages=True, read_topics=True)


def proof_of(program: Program, *tenants: Tenant) -> Any:
    answer = program.call("POST", "/isolation", {"tenants": [one.id for one in tenants]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_is_proven_for_reading_and_writing_and_leaves_nothing_behind(
    program: Program, root: Session
) -> None:
    program.start()
    server = Server(root, program)
    one, other = program.create(topics=["events"]), program.create("other", topics=["events"])
    proof = program.cli("verify-isolation", "--probe", one.id, other.id, "--json")
    assert proof.code == 0, (proof.stdout, proof.stderr)
    tried = {
        (check["action"], check["owner"], check["target"])
        for check in proof.json["checks"]
        if check["tenant"] == one.id
    }
    assert tried >= {
        ("write", one.id, one.stream),
        ("read", one.id, f"{one.stream} -> events"),
        ("write", one.id, f"{one.stream} (as its reader)"),
        ("read", one.id, "server (its users)"),
        ("write", other.id, other.stream),
        ("read", other.id, f"{other.stream} -> events"),
        ("read", other.id, f"{other.stream} (by joining the group tenantry)"),
        ("configure", other.id, f"{other.stream} (by emptying it)"),
        ("configure", other.id, f"user {producer_name(other.id)} (its password)"),
    }
    assert server.probes() == []
    assert server.in_marks(one, other) == [0, 0]
    with psycopg.connect(program.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM messages").fetchone()
    assert row == (0,)
    assert program.cli("audit", "--json").json["balanced"]
    assert program.runtime(one)["dead_lettered"] == 0


def test_rights_that_are_too_wide_or_too_narrow_are_found(program: Program, root: Session) -> None:
    program.start()
    server = Server(root, program)
    one, other = program.create(topics=["events"]), program.create("other", topics=["events"])
    ours, theirs = server.stream(one).id, server.stream(other).id
    sender, reader = producer_name(one.id), consumer_name(one.id)
    verb = f"tenant {one.id} is allowed"
    whose = f"of tenant {other.id}"
    events = server.topic(other, "events")
    of_topic = iggy.TopicPermissions(send_messages=True)

    server.allow(sender, {ours: SEND, theirs: SEND})
    broken = proof_of(program, one)
    assert sorted(broken["leaks"]) == [
        f"{verb} to write to {other.stream} (by send_messages of {sender}) {whose}",
        f"{verb} to write to {other.stream} {whose}",
    ]
    assert server.in_marks(other) == [1]
    assert proof_of(program, other)["isolated"]
    assert server.in_marks(one, other) == [0, 0]

    on_a_topic = iggy.StreamPermissions(read_topics=False, topics={events: of_topic})
    server.allow(sender, {ours: SEND, theirs: on_a_topic})
    assert proof_of(program, one)["leaks"] == [
        f"{verb} to write to {other.stream} -> events (by send_messages of {sender}) {whose}"
    ]

    server.allow(sender, {ours: SEND}, manage_users=True)
    leaks = proof_of(program, one)["leaks"]
    assert f"{verb} to change its own server (its users)" in leaks
    assert f"{verb} to change user {producer_name(other.id)} (its password) {whose}" in leaks

    server.allow(sender, {})
    denied = proof_of(program, one)
    assert denied["leaks"] == []
    assert denied["denials"] == [f"tenant {one.id} is refused to write to its own {one.stream}"]

    server.allow(sender, {ours: SEND})
    server.allow(reader, {ours: JOIN})
    leaks = proof_of(program, one)["leaks"]
    assert f"{verb} to read from its own {one.stream} (its consumer groups)" in leaks

    server.allow(reader, {ours: READ, theirs: JOIN})
    leaks = proof_of(program, one)["leaks"]
    assert f"{verb} to read from {other.stream} -> events {whose}" in leaks
    assert f"{verb} to read from {other.stream} (what is in it) {whose}" in leaks
    assert not [leak for leak in leaks if "write to" in leak or "change" in leak]

    server.allow(reader, {ours: READ})
    assert proof_of(program, one, other)["isolated"]
    assert server.probes() == []


def test_what_is_not_there_is_told_apart_from_what_is_refused(
    program: Program, root: Session
) -> None:
    program.start()
    server = Server(root, program)
    one, other = program.create(), program.create("other")
    file = program.directory / "credentials.json"
    file.write_text(json.dumps({one.id: one.shown["credentials"]}))
    arguments = ("verify-isolation", one.id, "--credentials", str(file))
    at = ("--iggy-address", Access.of(program.settings["BROKER_URL"]).where)
    proven = program.cli(*arguments, *at)
    assert proven.code == 0, (proven.stdout, proven.stderr)
    assert f"Ensured access to stream: {one.stream}" in proven.stdout
    assert f"Ensured no access to stream: {other.stream}" in proven.stdout
    assert "Isolated: 1 tenant(s)" in proven.stdout

    assert program.call("POST", f"/tenants/{other.id}/pause").status_code == 200
    root.call(lambda client: client.delete_stream(other.stream))
    lacking = program.cli(*arguments)
    assert lacking.code == 0, (lacking.stdout, lacking.stderr)
    assert f"Not there: stream: {other.stream}" in lacking.stdout
    assert other.stream not in lacking.stdout.replace(f"Not there: stream: {other.stream}", "")

    assert server.stream(other) is None
    unjudged = program.cli("verify-isolation", "--probe", other.id)
    assert unjudged.code == 1
    assert f"NO VERDICT: tenant {other.id}" in unjudged.stdout
    assert "not there" in unjudged.stdout


def test_the_full_proof_rotates_passwords_and_lets_the_daemon_read(program: Program) -> None:
    program.start()
    one, other = program.create(), program.create("other")
    proof = program.cli("verify-isolation", one.id, other.id, "--json")
    assert proof.code == 0, (proof.stdout, proof.stderr)
    tried = {(check["tenant"], check["action"], check["target"]) for check in proof.json["checks"]}
    assert (one.id, "write", f"{one.stream} (as its reader)") in tried
    for tenant in (one, other):
        assert tenant.password not in program.stderr


def test_the_daemon_proves_it_by_itself_and_names_both(program: Program, root: Session) -> None:
    program.start(TENANTRY_ISOLATION_VERIFY_EVERY_SECONDS="0.5")
    server = Server(root, program)
    one, other = program.create(), program.create("other")
    metric = "tenantry_isolation_failures"
    eventually(lambda: scrape(program).value(metric) == 0, what="a proof")
    streams = {server.stream(tenant).id: SEND for tenant in (one, other)}
    server.allow(producer_name(one.id), streams)
    eventually(lambda: scrape(program).value(metric) == 2, what="the leak")
    failures = {entry["failure"] for entry in program.wait_logged("isolation.violated", 2)}
    leak = f"tenant {one.id} is allowed to write to {other.stream} of tenant {other.id}"
    assert leak in failures
    assert program.stop() == 0
    assert server.probes() == []
