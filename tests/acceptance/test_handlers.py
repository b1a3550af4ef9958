"""Handlers in a running daemon: retries, dead letters, and handlers that kill the daemon."""

from __future__ import annotations

import json
from typing import Any

import pika
import psycopg
import pytest

from tests import scrapes
from tests.acceptance.program import Program, Tenant
from tests.waiting import eventually

HANDLERS = "events=tests.acceptance.handlers:act"


@pytest.fixture
def handled(program: Program) -> Program:
    """A daemon with a handler, not started yet: three attempts, with short pauses."""
    program.settings |= {
        "TENANTRY_HANDLERS": HANDLERS,
        "TENANTRY_RETRY_ATTEMPTS": "3",
        "TENANTRY_RETRY_BACKOFF_SECONDS": "0.05,0.1",
        "TENANTRY_HANDLER_TIMEOUT_SECONDS": "2",
    }
    with psycopg.connect(program.database_url) as connection:
        connection.execute("CREATE TABLE effects (tenant text, id text, attempt integer)")
    return program


def start(program: Program) -> None:
    program.spawn()
    program.wait_ready()


def publish(tenant: Tenant, messages: dict[str, object], **properties: Any) -> None:
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for identity, payload in messages.items():
            channel.basic_publish(
                tenant.stream,
                "events.1",
                json.dumps(payload).encode(),
                pika.BasicProperties(
                    message_id=identity,
                    content_type="application/json",
                    delivery_mode=2,
                    **properties,
                ),
                mandatory=True,
            )


def query(program: Program, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(program.database_url) as connection:
        return connection.execute(text.encode()).fetchall()


def effects(program: Program) -> dict[str, int]:
    rows = query(program, "SELECT id, attempt FROM effects")
    assert len(rows) == len(dict(rows)), "a handler's work was kept twice"
    return dict(rows)


def stored(program: Program) -> set[str]:
    return {identity for (identity,) in query(program, "SELECT id FROM public.messages")}


def letters(program: Program, tenant: Tenant) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = program.get(f"/tenants/{tenant.id}/dead-letters")["data"]
    return data


def test_a_message_is_tried_again_until_it_is_stored_or_dead(handled: Program) -> None:
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    extra = {"correlation_id": "c", "reply_to": "r", "type": "t", "headers": {"a": [1, "b"]}}
    publish(tenant, {"good": {}, "flaky": {"fails": 2}, "poison": {"fails": 9}}, **extra)
    publish(tenant, {str(n): {} for n in range(50)})
    (letter,) = eventually(lambda: letters(handled, tenant))
    good = {"good", "flaky", *map(str, range(50))}
    eventually(lambda: stored(handled) == good)
    assert effects(handled) == dict.fromkeys(good, 1) | {"flaky": 3}
    assert (letter["id"], letter["topic"], letter["partition"]) == ("poison", "events", 1)
    assert (letter["reason"], letter["attempts"]) == ("handler_failed", 3)
    assert "attempt 1 is in vain" in letter["first_error"]
    assert "attempt 3 is in vain" in letter["error"]
    events = handled.get(f"/tenants/{tenant.id}/events")["data"]
    (told,) = [one["data"] for one in events if one["type"] == "MessageDeadLettered"]
    assert (told["attempts"], told["first_error"]) == (3, letter["first_error"])
    eventually(lambda: query(handled, "SELECT * FROM tenantry.attempts") == [])

    def outcomes() -> list[int]:
        runtime = handled.runtime(tenant)
        return [runtime[name] for name in ("stored", "dead_lettered", "held")]

    eventually(lambda: outcomes() == [52, 1, 0])
    # The broker has moved the message itself, with all its properties.
    with handled.connect_admin() as connection:
        channel = connection.channel()
        _, properties, body = eventually(
            lambda: (got := channel.basic_get(tenant.dead_letters, auto_ack=True))[0] and got
        )
    assert json.loads(body) == {"fails": 9}
    assert (properties.correlation_id, properties.reply_to, properties.type) == ("c", "r", "t")
    assert properties.headers["a"] == [1, "b"]

    # A handler that exits its thread fails like any other.
    publish(tenant, {"before": {}, "quits": {"exits": "thread"}, "after": {}})
    letter = eventually(lambda: {one["id"]: one for one in letters(handled, tenant)}.get("quits"))
    assert (letter["reason"], letter["attempts"]) == ("handler_failed", 3)
    assert "SystemExit: 3" in letter["error"]
    eventually(lambda: stored(handled) == good | {"before", "after"})
    assert handled.stop() == 0


NEARLY_OVER = """
UPDATE tenantry.attempts SET not_before = clock_timestamp() + interval '2 s' RETURNING not_before
"""


def test_attempts_are_counted_on_after_a_crash_in_the_middle_of_a_pause(handled: Program) -> None:
    handled.settings["TENANTRY_RETRY_BACKOFF_SECONDS"] = "600"
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    publish(tenant, {"flaky": {"fails": 1}, "good": {}})
    eventually(lambda: stored(handled) == {"good"})
    eventually(lambda: handled.runtime(tenant)["held"] == 1)
    handled.kill()
    ((not_before,),) = query(handled, NEARLY_OVER)
    start(handled)
    eventually(lambda: stored(handled) == {"good", "flaky"})
    ((stored_at,),) = query(handled, "SELECT created_at FROM messages WHERE id = 'flaky'")
    assert stored_at >= not_before
    assert effects(handled) == {"good": 1, "flaky": 2}
    assert query(handled, "SELECT * FROM tenantry.attempts") == []


def test_a_pause_does_not_keep_the_daemon_from_ending(handled: Program) -> None:
    handled.settings["TENANTRY_RETRY_BACKOFF_SECONDS"] = "600"
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    publish(tenant, {"flaky": {"fails": 1}})
    eventually(lambda: handled.runtime(tenant)["held"] == 1)
    assert handled.stop() == 0
    eventually(lambda: handled.ready_messages(f"{tenant.stream}.events.1") == 1)


def test_a_message_that_kills_the_daemon_ends_as_a_dead_letter(handled: Program) -> None:
    handled.settings["TENANTRY_RETRY_ATTEMPTS"] = "2"
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    good = {f"{place}-{n}": {} for place in ("before", "after") for n in range(3)}
    publish(tenant, {**good, "killer": {"exits": "process"}, "last": {}})
    deaths = 0

    def judged() -> bool:
        return bool(query(handled, "SELECT FROM tenantry.dead_letters"))

    while True:
        eventually(lambda: not handled.running or judged())
        if handled.running:
            break
        assert handled.wait() == 9
        deaths += 1
        assert deaths <= 5, "the daemon dies again and again"
        handled.spawn()
    # Once in a batch, where the culprit is not known; then alone, each attempt counted beforehand.
    assert deaths == 3
    handled.wait_ready()
    (letter,) = letters(handled, tenant)
    assert (letter["id"], letter["reason"], letter["attempts"]) == ("killer", "worker_killed", 2)
    assert letter["error"] == letter["first_error"] == "the daemon ended while the handler ran"
    eventually(lambda: stored(handled) == {*good, "last"})
    assert effects(handled) == dict.fromkeys((*good, "last"), 1)
    eventually(lambda: query(handled, "SELECT * FROM tenantry.attempts") == [])


def test_a_handler_that_hangs_costs_its_own_message_and_no_other(handled: Program) -> None:
    handled.settings["TENANTRY_RETRY_ATTEMPTS"] = "2"
    start(handled)
    tenant = handled.create(topics=["events"], partitions=2)
    publish(tenant, {"1": {}, "hangs": {"hangs": True}, "2": {}})
    (letter,) = eventually(lambda: letters(handled, tenant))
    assert (letter["reason"], letter["attempts"]) == ("handler_timeout", 2)
    assert "has not come back within 2 s: it is in act, at handlers.py:" in letter["error"]
    eventually(lambda: stored(handled) == {"1", "2"})
    assert effects(handled) == {"1": 1, "2": 1}
    publish(tenant, {"3": {}})
    eventually(lambda: stored(handled) == {"1", "2", "3"})
    scrape = scrapes.read(handled.call("GET", "/metrics").text)
    assert scrape.value("tenantry_handler_threads_abandoned") == 2
    labels = {"tenant_id": tenant.id, "reason": "handler_timeout"}
    assert scrape.value("tenantry_failed_attempts_total", **labels) == 2
    assert handled.stop() == 0


def test_a_handler_that_can_t_be_used_is_named_at_start(program: Program) -> None:
    program.config.write_text('[handlers]\n"events" = "tests.acceptance.handlers:nobody"\n')
    ended = program.run()
    assert ended.code == 2
    assert ended.complaint == (
        f"error: handlers.events: tests.acceptance.handlers has no 'nobody' ({program.config})"
    )
