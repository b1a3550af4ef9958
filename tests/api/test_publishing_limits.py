"""Publishing over HTTP within a tenant's limits: what is told to who publishes too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantry.api.publishing_rates import PublishingRates
from tenantry.broker.port import BacklogFullError, MessagesRefusedError, Outgoing
from tenantry.domain.commands import ChangeLimits
from tenantry.domain.limits import Limits
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.problems import Problem, type_of
from tenantry.journal.port import Metadata
from tenantry.metrics.refusals import Reason, Refused
from tests.api.dead_letters import listed, message, reject, replay
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE


def limited(incarnation: int = 1, **limits: Any) -> TenantState:
    now = datetime.now(UTC)
    return TenantState(
        tenant_id="acme",
        name="Acme",
        lifecycle=Lifecycle.ACTIVE,
        workers=1,
        topics=(),
        partitions=1,
        version=1,
        created_at=now,
        updated_at=now,
        incarnation=incarnation,
        limits=Limits(**limits),
    )


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wait_for(rates: PublishingRates, state: TenantState, count: int) -> int:
    """Give the seconds a call is told to wait; 0 where it is taken."""
    try:
        rates.admit(state, count)
    except Problem as problem:
        return int(problem.headers["Retry-After"])
    return 0


@given(
    st.integers(1, 1000),
    st.none() | st.integers(1, 5000),
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
)
def test_who_comes_again_when_told_is_taken_and_the_rate_holds(
    rate: int, burst: int | None, calls: list[int]
) -> None:
    clock = Clock()
    rates, state = PublishingRates(clock), limited(rate=rate, burst=burst)
    began, taken = clock.now, 0
    for count in calls:
        wait = wait_for(rates, state, count)
        if wait:
            clock.now += wait
            assert wait_for(rates, state, count) == 0
        # What goes beyond a burst is owed, and waited for by the next call.
        assert taken <= rate * (clock.now - began) + (burst or rate)
        taken += count


def test_a_new_rate_holds_at_once_and_brings_no_new_burst() -> None:
    clock = Clock()
    rates = PublishingRates(clock)
    assert wait_for(rates, limited(rate=10), 10) == 0
    assert wait_for(rates, limited(rate=10), 10) == 1
    assert wait_for(rates, limited(rate=2, burst=100), 4) == 2
    assert wait_for(rates, limited(), 1_000_000) == 0


def test_another_tenant_of_the_same_id_owes_nothing() -> None:
    rates = PublishingRates(Clock())
    assert wait_for(rates, limited(rate=1), 1000) == 0
    assert wait_for(rates, limited(rate=1), 1) > 100
    assert wait_for(rates, limited(incarnation=2, rate=1), 1) == 0


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme")
        served.world.create("other")
        yield served


def limit(api: Served, **changes: int) -> None:
    command = ChangeLimits(tenant_id="acme", changes=changes)
    api.world.control.execute(command, metadata=Metadata(actor="test"), timeout=DEADLINE)


def test_publishing_beyond_the_rate_is_429_with_the_seconds_to_wait(api: Served) -> None:
    limit(api, rate=5)
    # What a bucket that is full lends takes minutes to pay back, however slow the machine is.
    many = [{"payload": number} for number in range(1000)]
    five = many[:5]
    assert api.tcp.post("/tenants/acme/messages", json=many).status_code == 202
    refused = api.tcp.post("/tenants/acme/messages", json=five)
    assert refused.status_code == 429
    assert 100 < int(refused.headers["retry-after"]) <= 200
    assert "5 messages a second" in refused.json()["detail"]
    # With a key the call goes the long way, to the same count.
    keyed = api.tcp.post("/tenants/acme/messages", json=five, headers={"Idempotency-Key": "k"})
    assert keyed.status_code == 429
    assert len(api.world.publishing.sent) == 1000
    assert api.tcp.post("/tenants/other/messages", json=five).status_code == 202


def test_a_full_backlog_is_429_and_a_broker_that_does_not_say_why_503(api: Served) -> None:
    api.world.publishing.error = MessagesRefusedError("a queue is full or failing")
    refused = api.tcp.post("/tenants/acme/messages", json={"payload": 1})
    assert (refused.status_code, refused.json()["type"]) == (503, type_of("broker-refused"))
    limit(api, backlog_messages=10)
    for error in (api.world.publishing.error, BacklogFullError("the backlog of acme is full")):
        api.world.publishing.error = error
        refused = api.tcp.post("/tenants/acme/messages", json={"payload": 1})
        assert (refused.status_code, refused.json()["type"]) == (429, type_of("backlog-full"))
        assert int(refused.headers["retry-after"]) > 0
        assert "acme" in refused.json()["detail"]
        assert "same message ids" in refused.json()["detail"]
    api.world.publishing.error = None
    assert api.tcp.post("/tenants/acme/messages", json={"payload": 1}).status_code == 202


def test_what_is_refused_is_noted_by_tenant_and_reason(api: Served) -> None:
    limit(api, backlog_messages=10)
    many = [{"payload": number} for number in range(1000)]
    api.world.publishing.error = MessagesRefusedError("a queue is full or failing")
    for tenant_id in ("acme", "other"):  # the other has no limit: it may have failed by itself
        assert api.tcp.post(f"/tenants/{tenant_id}/messages", json={"payload": 1}).is_error
    api.world.publishing.error = BacklogFullError("the backlog of acme is full")
    assert api.tcp.post("/tenants/acme/messages", json=many).status_code == 429
    api.world.publishing.error = None
    limit(api, rate=5)
    assert api.tcp.post("/tenants/acme/messages", json=many).status_code == 202
    assert api.tcp.post("/tenants/acme/messages", json=many).status_code == 429
    assert api.tcp.post("/tenants/acme/messages", json=[{"topic": "none"}]).status_code == 422
    noted: dict[Refused, int] = {}
    api.app.state.services.refusals.hand_over(noted.update)
    assert noted == {
        Refused("acme", 1, Reason.BACKLOG): 2,
        Refused("acme", 1, Reason.RATE): 1,
    }


def test_a_replay_into_a_full_backlog_is_429_and_its_letters_stay(api: Served) -> None:
    reject(api.world, message("m"))
    api.world.publishing.error = BacklogFullError("the backlog of acme is full")
    answer = api.control.post("/tenants/acme/dead-letters/replay", json={"all": True})
    assert (answer.status_code, answer.json()["type"]) == (429, type_of("backlog-full"))
    assert [one["id"] for one in listed(api)] == ["m"]
    api.world.publishing.error = None
    assert replay(api, {"all": True}) == {"replayed": 1}
    assert [one.message_id for one in api.world.publishing.sent] == ["m"]


def test_a_replay_goes_as_far_as_there_is_room_and_the_next_one_goes_on(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(api.world, *[message(str(number)) for number in range(130)])
    room = 30
    publish = api.world.publishing.publish

    def within(messages: Sequence[Outgoing], *, timeout: float) -> None:
        nonlocal room
        if len(messages) > room:
            raise BacklogFullError("the backlog of acme is full")
        room -= len(messages)
        publish(messages, timeout=timeout)

    monkeypatch.setattr(api.world.publishing, "publish", within)
    path, calls = "/tenants/acme/dead-letters/replay", 0
    while listed(api):
        answer = api.control.post(path, json={"all": True})
        # That there is no more room is told where nothing of a batch has gone.
        assert answer.status_code == 429 or answer.json()["replayed"] == 30 - room
        assert room == 0 or not listed(api)
        room, calls = 30, calls + 1
    assert calls == 5
    assert sorted(int(one.message_id or "") for one in api.world.publishing.sent) == [*range(130)]
