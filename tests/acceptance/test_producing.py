"""The producer, the proof of isolation and the demo, as a newcomer runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scratch
from tests.acceptance.program import Program
from tests.waiting import DEADLINE, eventually


def lines_are_there(lines: list[str], stdout: str) -> None:
    printed = stdout.splitlines()
    for line in lines:
        assert line in printed, line


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory that the demo's PostgreSQL can always reach, as another user if root runs this.

    Each run of pytest that begins closes pytest's own directory to other users again.
    """
    with scratch.directory("tenantry-test-demo-") as made:
        yield made


def test_the_demo_shows_everything_and_proves_that_it_adds_up(
    temporary: Path, program: Program
) -> None:
    # The demo needs no RabbitMQ, and none is configured.
    alone = {"PATH": "/usr/bin:/bin", "RABBITMQ_URL": "", "DATABASE_URL": ""}
    ended = program.cli("demo", timeout=2 * DEADLINE, TMPDIR=str(temporary), **alone)
    assert ended.code == 0, ended.stderr
    lines_are_there(
        [
            "--- Multi-tenant producer has started, tenants: 3, producers: 3, partitions: 3 ---",
            "--- Creating root client to manage streams and users ---",
            "--- Creating streams and users with permissions for each tenant ---",
            "--- Creating clients for each tenant ---",
            "--- Ensuring access to streams for each tenant ---",
            "--- Starting 3 producer(s) for each tenant ---",
        ],
        ended.stdout,
    )
    for number in (1, 2, 3):
        lines_are_there(
            [
                f"Created stream: tenant_{number}_stream with ID: {number}",
                (
                    f"Created user: tenant_{number}_producer with ID: {number},"
                    f" with permissions for stream: tenant_{number}_stream"
                ),
                f"Ensured access to stream: tenant_{number}_stream",
                f"Ensured no access to stream: tenant_{number}_stream",
            ],
            ended.stdout,
        )
        for topic in ("events", "logs", "notifications"):
            lines_are_there(
                [
                    f"Sent: 10 message(s) by tenant: {number}, producer: {producer},"
                    f" to: tenant_{number}_stream -> {topic}"
                    for producer in (1, 2, 3)
                ],
                ended.stdout,
            )
    # 3 tenants, 3 topics, 3 producers, 10 batches of 10.
    total = re.search(r"^Total: ([\d,]+) sent, ([\d,]+) stored$", ended.stdout, re.MULTILINE)
    assert total is not None, ended.stdout
    assert total.groups() == ("2,700", "2,700")
    assert "Traceback" not in ended.stderr
    assert list(temporary.iterdir()) == []


def test_the_producer_runs_twice_and_isolation_is_proven(running: Program) -> None:
    small = (
        "--tenants", "2", "--producers", "1", "--partitions", "2", "--message-batches-limit", "2",
    )  # fmt: skip
    try:
        for _ in range(2):
            ended = running.cli("produce", *small)
            assert ended.code == 0, ended.stderr
            assert "Ensured no access to stream: tenant_2_stream" in ended.stdout.splitlines()
        # Twice, to 3 topics, 2 batches of 10.
        for tenant_id in ("1", "2"):
            eventually(lambda one=tenant_id: settled(running, one) == 120, what="120 messages")
        proof = running.cli("verify-isolation", "--json")
        assert proof.code == 0, proof.stderr
        assert "/api/whoami (the management API)" in {one["target"] for one in proof.json["checks"]}
    finally:
        # Other tests use these names as well.
        for tenant_id in ("1", "2"):
            running.call("DELETE", f"/tenants/{tenant_id}")
    bad = running.cli("produce", PRODUCERS_COUNT="none")
    assert bad.code == 2
    assert "PRODUCERS_COUNT" in bad.stderr.splitlines()[-1]


def settled(program: Program, tenant_id: str) -> int:
    runtime = program.get("/status")["tenants"][tenant_id]
    return int(runtime["stored"]) + int(runtime["duplicates"])
