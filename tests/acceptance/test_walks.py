"""Three paths through the code visit exactly the files that ARCHITECTURE.md lists.

A message, a command and a dead letter are followed through the running program: the functions
called while they are under way, on the threads that handle them.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pika
import pytest

from tests.acceptance import program as programs
from tests.acceptance import traced
from tests.acceptance.program import Program
from tests.acceptance.traced import Call
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]

FRAME = (
    # The lowest layers, which every module may use.
    "tenantry/database/", "tenantry/sql/", "tenantry/settings/", "tenantry/telemetry/",
    "tenantry/domain/names.py", "tenantry/failpoints.py",
    "tenantry/loops.py", "tenantry/turns/", "tenantry/urls.py", "tenantry/terms/",
    "daemon.py",
    # The surroundings of every request, every actor, and every channel.
    "tenantry/http/", "tenantry/api/routing.py", "tenantry/api/access.py",
    "tenantry/api/services.py", "tenantry/api/tracing.py", "tenantry/page/pages.py",
    "tenantry/api/schemas/common.py",
    "actors/supervision.py", "actors/clock.py",
    "tenantry/broker/rabbitmq/connection.py", "tenantry/broker/rabbitmq/consuming.py",
    "tenantry/broker/rabbitmq/loop.py", "tenantry/broker/rabbitmq/pika_internals.py",
    # Metrics, state and notices that are written on the side.
    "tenantry/metrics/", "actors/runtime_state.py", "tenantry/broker/pending.py",
    "tenantry/journal/listener.py",
)  # fmt: skip
"""Files that count to no path, as every path leads through them."""

OPENING = re.compile(r"\._(channel_)?(opened|closed|declared)$")
"""Handlers of RabbitMQ's answers while a channel is opened and closed: one conversation."""

PORT = re.compile(r"/(port|ports|messages)\.py$")
"""Modules with interfaces and messages only, which do nothing."""


def told(heading: str) -> set[str]:
    """Return the files listed at the end of a section of ARCHITECTURE.md; check their number."""
    section = (ROOT / "ARCHITECTURE.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (count, text) = re.findall(r"^\*\*(\d+) files[^*]*\*\*:((?:.+\n)+)", section, re.MULTILINE)[0]
    files = re.findall(r"`([\w/]+\.py)`", text)
    assert len(files) == len(set(files)) == int(count)
    return set(files)


def entered(calls: Iterable[Call], threads: Callable[[str], bool]) -> dict[str, set[str]]:
    """Return the files of a path, each with the functions by which `FRAME` files enter it.

    If a frame file calls back into the file that is waiting for that call, it is no other visit.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        if threads(call.thread) and not call.file.startswith(FRAME) and not PORT.search(call.file):
            ways_in = found[call.file]
            before = next((one for one in call.callers if not one.startswith(FRAME)), None)
            from_frame = not call.callers or call.callers[0].startswith(FRAME)
            if from_frame and before != call.file:
                ways_in.add(OPENING.sub(" opens", call.function))
    return found


@pytest.mark.own_interpreter
def test_each_way_leads_through_the_files_that_are_told(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "COMMAND", (sys.executable, "-m", "tests.acceptance.traced"))
    trace = traced.Trace(tmp_path)
    program.start(**{traced.DIRECTORY: str(tmp_path)})
    tenant = program.create(topics=["events"])
    delivery: list[Call] = []
    command: list[Call] = []
    failure: list[Call] = []
    replay: list[Call] = []
    with pika.BlockingConnection(pika.URLParameters(tenant.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        def publish(identity: str, body: bytes) -> None:
            said = pika.BasicProperties(message_id=identity, content_type="application/json")
            channel.basic_publish(tenant.stream, "events", body, said, mandatory=True)

        # The second message finds a worker, and everything that the first use creates.
        publish("first", b"1")
        eventually(lambda: program.runtime(tenant)["stored"] == 1)
        with trace.of(delivery, until="RabbitSubscription._settle"):
            publish("second", b"2")
        with trace.of(command):
            path = f"/tenants/{tenant.id}/config/concurrency"
            assert program.call("PUT", path, {"workers": 5}).status_code == 200
        with trace.of(failure, until="RabbitSubscription._settle,DeadLetterEvents._put_off"):
            publish("bad", b"{no JSON")
        path = f"/tenants/{tenant.id}/dead-letters"
        eventually(lambda: program.get(path)["data"])
        with trace.of(replay):
            assert program.call("POST", f"{path}/replay", {"ids": ["bad"]}).json()["replayed"] == 1

    def of_messages(thread: str) -> bool:
        return thread == "broker-consuming" or thread.startswith(f"{tenant.id}/")

    def of_commands(thread: str) -> bool:
        return thread in ("api", "supervisor") or thread.startswith(("AnyIO", f"{tenant.id}/"))

    def of_requests(thread: str) -> bool:
        return thread == "api" or thread.startswith("AnyIO")

    message = entered(delivery, of_messages)
    changed = entered(command, of_commands)
    failed = entered(failure, of_messages)
    replayed = entered(replay, of_requests)
    assert message.keys() == told("A message's way")
    assert changed.keys() == told("A command's way")
    assert (failed.keys() | replayed.keys()) - message.keys() == told("A dead letter's way")
    for way in (message, changed, failed, replayed):
        assert {file: ways_in for file, ways_in in way.items() if len(ways_in) > 2} == {}
