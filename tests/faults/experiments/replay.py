"""The daemon is killed in the middle of replays of ten thousand dead letters, again and again."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from typing import Any

import httpx
import pika
import psycopg

from tests.acceptance.program import Tenant
from tests.faults.rig import PATIENCE, Rig, queues_of
from tests.ledger import Draft
from tests.waiting import eventually

LETTERS = 10_000
FEW_LETTERS = 1_000
KILLS = 5
FEW_KILLS = 2
"""Kills during one replay."""

POISON_EVERY = 10
LONGEST = 600.0


def make(_tenant_id: str, number: int) -> Draft:
    """Make a message: mostly good ones; one in ten is poison, and dies again when replayed."""
    key = str(uuid.uuid4())
    poison = number % POISON_EVERY == 0
    body = b"not JSON %d" % number if poison else b'{"number": %d}' % number
    return Draft(
        key=key,
        message_id=key,
        body=body,
        content_type="application/json",
        fate="dead_lettered" if poison else "stored",
    )


def run(rig: Rig, rounds: int) -> None:
    many = rounds > 1
    letters = LETTERS if many else FEW_LETTERS
    rig.start(tenants=1)
    (tenant,) = rig.tenants
    kills = 0
    for number in rig.rounds(rounds):
        _bury(rig, tenant, letters, lying=(number - 1) * letters // POISON_EVERY)
        which = {
            "filter": {"reason": "rejected", "until": _call(rig, tenant, dry_run=True)["as_of"]}
        }
        for _ in range(KILLS if many else FEW_KILLS):
            with _replaying(rig, tenant, which):
                rig.moment(3.0 if many else 0.5)
                rig.program.kill()
            kills += 1
            rig.start_again()
        _replay_the_rest(rig, tenant, which)
        _see_that_it_adds_up(rig, tenant, number * letters)
    rig.figures.notes["kills"] = str(kills)


def _bury(rig: Rig, tenant: Tenant, letters: int, *, lying: int) -> None:
    """Publish messages to the paused tenant, and reject them all, so that they become dead letters.

    `lying` dead letters are there before; their queue shows fewer while they are browsed.
    """
    assert rig.program.call("POST", f"/tenants/{tenant.id}/pause").status_code == 200
    with rig.load(rate=5_000, make=make, limit=letters):
        rig.ledger.wait_confirmed(letters, timeout=LONGEST)
    with pika.BlockingConnection(pika.URLParameters(rig.program.host.url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1000)
        rejected = 0
        for queue in queues_of(tenant):
            for method, _, _ in channel.consume(queue, inactivity_timeout=2.0):
                if method is None:
                    break
                channel.basic_reject(method.delivery_tag, requeue=False)
                rejected += 1
            channel.cancel()
        assert rejected == letters, rejected
    eventually(
        lambda: rig.program.ready_messages(tenant.dead_letters) == lying + letters,
        timeout=LONGEST,
        what="all messages among the dead letters",
    )
    assert rig.program.call("POST", f"/tenants/{tenant.id}/resume").status_code == 200


def _call(rig: Rig, tenant: Tenant, **body: Any) -> dict[str, Any]:
    path = f"/tenants/{tenant.id}/dead-letters/replay"
    asked = body if "filter" in body else {"all": True, **body}

    def ask() -> httpx.Response | None:
        answer = rig.program.call("POST", path, asked, timeout=120)
        return None if answer.status_code == 409 else answer

    # Browsing ten thousand letters keeps the queue in use: retry, as the command line does.
    answer = eventually(ask, timeout=LONGEST, what="its turn")
    assert answer is not None
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


class _replaying:  # noqa: N801 - it is used as a statement
    """Runs a replay beside the block."""

    def __init__(self, rig: Rig, tenant: Tenant, which: dict[str, Any]) -> None:
        self._thread = threading.Thread(target=self._run, args=(rig, tenant, which))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)

    @staticmethod
    def _run(rig: Rig, tenant: Tenant, which: dict[str, Any]) -> None:
        with suppress(httpx.HTTPError, AssertionError):  # the daemon is killed meanwhile
            _call(rig, tenant, **which)


def _replay_the_rest(rig: Rig, tenant: Tenant, which: dict[str, Any]) -> None:
    while True:
        answer = _call(rig, tenant, **which)
        if not answer["replayed"] and answer.get("complete", True):
            return


def _see_that_it_adds_up(rig: Rig, tenant: Tenant, buried: int) -> None:
    """Check: each letter was replayed once, each poison is one letter, queue and list agree."""
    poison = buried // POISON_EVERY

    def look() -> tuple[int, ...]:
        with psycopg.connect(rig.program.database_url) as connection:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM public.messages WHERE tenant_id = %(tenant)s),"
                " count(*) FILTER (WHERE NOT settled),"
                " count(*) FILTER (WHERE NOT settled AND replays = 1),"
                " (SELECT coalesce(sum((data->>'count')::int), 0) FROM tenantry.events"
                "  WHERE stream = %(stream)s AND type = 'DeadLettersReplayed')"
                " FROM tenantry.dead_letters WHERE tenant_id = %(tenant)s",
                {"tenant": tenant.id, "stream": f"dead_letters-{tenant.id}"},
            ).fetchone()
        assert row is not None
        return (*row, rig.program.ready_messages(tenant.dead_letters))

    expected = (buried - poison, poison, poison, buried, poison)
    found: tuple[int, ...] = ()

    def adds_up() -> bool:
        # Repeated, as the queue shows fewer letters while they are browsed.
        nonlocal found
        found = look()
        return found == expected

    with suppress(AssertionError):
        eventually(adds_up, timeout=PATIENCE)
    if found != expected:
        rig.figures.wrong.append(
            "stored, listed, listed after one replay, replays in the journal, queued: "
            f"{found} instead of {expected}"
        )
