"""A small call publishes on the event loop where there is a way, as it would on a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tenantry.api.publisher import ON_LOOP, OnLoop, Publisher
from tenantry.api.services import TenantLookup
from tenantry.broker.port import BacklogFullError, Outgoing
from tenantry.domain.commands import ChangeLimits, PauseTenant, RequestDeletion, WrongStateError
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.pool import CLIENT, Pool
from tenantry.http.problems import Problem
from tenantry.http.tokens import Principal, Scope
from tenantry.journal.port import Metadata
from tenantry.metrics.refusals import Reason, Refused
from tests.api.serving import World
from tests.waiting import DEADLINE

ADMIN = Principal(name="admin", scope=Scope.ADMIN)


class FakeLoopPublishing:
    """Confirms everything and remembers it, or raises `error`."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.error: Exception | None = None

    async def publish(self, messages: Sequence[Outgoing], *, within: float) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert within > 0
        if self.error is not None:
            raise self.error
        self.sent.extend(messages)


class Setting:
    """A publisher with both ways, over ports in memory."""

    def __init__(self) -> None:
        self.world = World()
        self.world.create("acme", topics=("events",))
        self.on_loop = FakeLoopPublishing()
        self.publisher = Publisher(
            lookup=TenantLookup(self.world.directory),
            publishing=self.world.publishing,
            threads=Pool(4),
            on_loop=OnLoop(self.on_loop, self),
        )

    async def get(self, tenant_id: str) -> TenantState | None:
        return self.world.directory.get(tenant_id)

    def execute(self, command: Any) -> None:
        metadata = Metadata(actor="test")
        self.world.control.execute(command, metadata=metadata, timeout=DEADLINE)

    def post(self, body: bytes | list[Any] | dict[str, Any], who: Principal = ADMIN) -> Any:
        """Publish to acme; give the ids, None where FastAPI is to answer."""
        given = body if isinstance(body, bytes) else json.dumps(body).encode()

        async def call() -> Any:
            CLIENT.set("acme")
            answer = await self.publisher.read_and_publish("acme", who, given)
            return None if answer is None else json.loads(answer.body)["ids"]

        return asyncio.run(asyncio.wait_for(call(), DEADLINE))

    def refused(self, body: list[Any] | dict[str, Any], who: Principal = ADMIN) -> Problem:
        with pytest.raises(Problem) as refused:
            self.post(body, who)
        return refused.value


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_small_calls_need_no_thread_and_large_ones_take_one(setting: Setting) -> None:
    ids = setting.post({"payload": 1, "topic": "events"})
    ids += setting.post([{"payload": number} for number in range(40)])
    assert [one.message_id for one in setting.on_loop.sent] == ids
    assert len(ids) == 41
    assert setting.world.publishing.sent == []
    many = setting.post([{"payload": number} for number in range(60)])
    large = setting.post({"payload": "x" * ON_LOOP})
    assert [one.message_id for one in setting.world.publishing.sent] == many + large
    assert len(setting.on_loop.sent) == 41


def test_payloads_are_passed_on_as_they_came(setting: Setting) -> None:
    setting.post(b'[{"payload": {"n": 1.10}, "id": "a"}, {"id": "b", "payload": 1E+2 }]')
    found = [(one.message_id, one.body, one.routing_key) for one in setting.on_loop.sent]
    assert found == [("a", b'{"n": 1.10}', "default"), ("b", b"1E+2", "default")]


def test_what_can_t_be_read_is_left_to_the_usual_route(setting: Setting) -> None:
    for body in (b"{", b'{"no": "payload"}', b"[]", b"[1]", b"[" * 2000, b'"\xff"', b""):
        assert setting.post(body) is None
    assert setting.on_loop.sent == []


def test_a_tenant_that_takes_no_messages_is_told_as_on_a_thread(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"payload": 1}
    assert setting.refused({"payload": 1, "topic": "none"}).status == 404
    setting.execute(PauseTenant(tenant_id="acme"))
    assert len(setting.post(body)) == 1
    setting.execute(RequestDeletion(tenant_id="acme"))
    assert setting.refused(body).status == 404
    gone = setting.world.directory.get("acme")
    assert gone is not None
    going = replace(gone, lifecycle=Lifecycle.DELETING)
    monkeypatch.setattr(setting.world.directory, "get", lambda _: going)
    for wanted in (body, [body] * 60):
        with pytest.raises(WrongStateError, match="acme"):
            setting.post(wanted)
    assert len(setting.on_loop.sent) == 1


def test_the_token_of_a_former_tenant_of_the_id_is_refused(setting: Setting) -> None:
    setting.execute(RequestDeletion(tenant_id="acme"))
    assert setting.refused({"payload": 1}).status == 404
    setting.world.create("acme")
    former = Principal(name="acme", scope=Scope.TENANT, tenant_id="acme")
    assert setting.refused({"payload": 1}, former).status == 401
    assert setting.on_loop.sent == []


def test_both_ways_count_towards_one_rate(setting: Setting) -> None:
    setting.execute(ChangeLimits(tenant_id="acme", changes={"rate": 5}))
    setting.post([{"payload": number} for number in range(1000)])
    assert setting.refused({"payload": 1}).status == 429
    refusals: dict[Refused, int] = {}
    setting.publisher.refusals.hand_over(refusals.update)
    assert refusals == {Refused("acme", 1, Reason.RATE): 1}


def test_a_full_backlog_is_told_and_counted(setting: Setting) -> None:
    setting.execute(ChangeLimits(tenant_id="acme", changes={"backlog_messages": 10}))
    setting.on_loop.error = BacklogFullError("the backlog of acme is full")
    with pytest.raises(BacklogFullError):
        setting.post({"payload": 1})
    refusals: dict[Refused, int] = {}
    setting.publisher.refusals.hand_over(refusals.update)
    assert refusals == {Refused("acme", 1, Reason.BACKLOG): 1}
    setting.on_loop.error = None
    assert len(setting.post({"payload": 1})) == 1
