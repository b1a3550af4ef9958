"""Handlers without RabbitMQ: their work, the row and the queue in one transaction."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import psycopg
import pytest

from tests.acceptance.program import Program, Tenant
from tests.acceptance.test_handlers import HANDLERS, effects, letters, query, start, stored
from tests.waiting import eventually


@pytest.fixture
def handled(database_url: str) -> Iterator[Program]:
    """A daemon with a handler, not started yet: three attempts, with short pauses."""
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE effects (tenant text, id text, attempt integer)")
    with Program(None, database_url) as program:
        program.settings |= {
            "TENANTRY_HANDLERS": HANDLERS,
            "TENANTRY_RETRY_ATTEMPTS": "3",
            "TENANTRY_RETRY_BACKOFF_SECONDS": "0.05,0.1",
            "TENANTRY_HANDLER_TIMEOUT_SECONDS": "2",
        }
        yield program
        program.check_no_traceback()


def publish(tenant: Tenant, messages: dict[str, object]) -> None:
    with psycopg.connect(tenant.amqp_url) as session:
        for identity, payload in messages.items():
            session.execute(
                "SELECT tenantry.publish('events', %s, key => 'one', id => %s)",
                [json.dumps(payload), identity],
            )


def execute(program: Program, statement: str) -> None:
    with psycopg.connect(program.database_url, autocommit=True) as connection:
        connection.execute(statement.encode())


def balanced(program: Program) -> bool:
    found: bool = program.get("/audit")["balanced"]
    return found


def test_a_handlers_work_and_the_row_are_kept_together_and_once(handled: Program) -> None:
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    good = {str(n): {"n": n} for n in range(200)}
    publish(tenant, good)
    publish(tenant, dict(list(good.items())[:50]))  # again
    eventually(lambda: stored(handled) == set(good))
    eventually(lambda: handled.runtime(tenant)["duplicates"] == 50)
    assert effects(handled) == dict.fromkeys(good, 1)
    assert balanced(handled)
    assert handled.stop() == 0
    assert handled.ready_messages(f"{tenant.stream}.events.0", f"{tenant.stream}.events.1") == 0


LONG_PAUSE = "SELECT FROM tenantry.attempts WHERE not_before > clock_timestamp() + interval '1 min'"


def test_one_that_fails_at_first_is_tried_again_and_holds_up_nobody(handled: Program) -> None:
    handled.settings["TENANTRY_RETRY_BACKOFF_SECONDS"] = "0.05,600"
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    publish(tenant, {"flaky": {"fails": 2}, **{str(n): {} for n in range(20)}})
    others = {str(n) for n in range(20)}
    eventually(lambda: stored(handled) == others)
    eventually(lambda: query(handled, LONG_PAUSE), what="the second pause")
    eventually(lambda: handled.runtime(tenant)["held"] == 1)
    assert handled.stop() == 0
    execute(handled, "UPDATE tenantry.attempts SET not_before = clock_timestamp()")
    start(handled)
    eventually(lambda: stored(handled) == {*others, "flaky"})
    assert effects(handled) == dict.fromkeys(others, 1) | {"flaky": 3}
    assert letters(handled, tenant) == []
    eventually(lambda: query(handled, "SELECT * FROM tenantry.attempts") == [])
    eventually(lambda: handled.runtime(tenant)["held"] == 0)
    assert balanced(handled)
    assert handled.stop() == 0


def test_one_that_fails_for_good_is_a_dead_letter_and_can_be_replayed(handled: Program) -> None:
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    # An error of a handler's own statement must not cost the batch's transaction.
    execute(handled, "ALTER TABLE effects ADD CONSTRAINT lucky CHECK (id <> 'unlucky')")
    publish(tenant, {"before": {}, "poison": {"fails": 9}, "unlucky": {}, "after": {}})
    found = eventually(lambda: len(now := letters(handled, tenant)) == 2 and now)
    eventually(lambda: stored(handled) == {"before", "after"})
    assert effects(handled) == {"before": 1, "after": 1}
    by_id = {one["id"]: one for one in found}
    for letter in found:
        assert (letter["topic"], letter["partition"]) == ("events", found[0]["partition"])
        assert (letter["reason"], letter["attempts"]) == ("handler_failed", 3)
    assert "attempt 1 is in vain" in by_id["poison"]["first_error"]
    assert "attempt 3 is in vain" in by_id["poison"]["error"]
    assert "CheckViolation" in by_id["unlucky"]["error"]
    assert json.loads(base64.b64decode(by_id["poison"]["body"])) == {"fails": 9}
    execute(handled, "ALTER TABLE effects DROP CONSTRAINT lucky")
    path = f"/tenants/{tenant.id}/dead-letters"
    queues = [f"{tenant.stream}.events.{number}" for number in range(2)]
    eventually(lambda: handled.ready_messages(*queues) == 0, what="empty queues")
    assert handled.call("POST", f"{path}/replay", {"all": True}).json() == {"replayed": 2}
    eventually(lambda: stored(handled) == {"before", "after", "unlucky"})
    # The poison begins with its first attempt again, and is listed anew.
    (letter,) = eventually(lambda: len(now := letters(handled, tenant)) == 1 and now)
    eventually(lambda: letters(handled, tenant)[0]["replays"] == 1)
    assert (letter["id"], letter["attempts"]) == ("poison", 3)
    assert effects(handled) == {"before": 1, "after": 1, "unlucky": 1}
    eventually(lambda: balanced(handled))
    assert handled.stop() == 0
