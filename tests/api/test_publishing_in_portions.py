"""A list is published in portions while others make small calls, where the broker allows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from tenantry.api import publisher
from tenantry.api.publisher import MOST_PORTIONS, PORTION, Publisher
from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.services import TenantLookup
from tenantry.broker.port import BrokerUnavailableError, Outgoing
from tenantry.http.pool import CLIENT, Pool
from tenantry.http.tokens import Principal, Scope
from tenantry.turns import neighbours
from tenantry.turns.pacing import Pacing
from tests.api.fakes import FakePublishing
from tests.api.serving import World
from tests.waiting import DEADLINE

ADMIN = Principal(name="admin", scope=Scope.ADMIN)


class Portions(FakePublishing):
    """Notes what is published at once, and how long it may take; may be away from some portion."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.timeouts: list[float] = []
        self.away_after: int | None = None

    def publish(self, messages: Sequence[Outgoing], *, timeout: float) -> None:
        if len(self.sizes) == self.away_after:
            raise BrokerUnavailableError("away")
        super().publish(messages, timeout=timeout)
        self.sizes.append(len(messages))
        self.timeouts.append(timeout)


class Setting:
    """A tenant that publishes a list, beside another or alone."""

    def __init__(self) -> None:
        self.world = World()
        self.world.create("acme")
        self.portions = Portions()
        self.publisher = Publisher(
            lookup=TenantLookup(self.world.directory), publishing=self.portions, threads=Pool(4)
        )

    def post(self, count: int, *, beside: bool = True) -> list[str]:
        body = json.dumps([{"payload": {"n": n}} for n in range(count)]).encode()

        async def call() -> list[str]:
            calls = self.publisher.threads._one_by_one
            if beside:
                calls._neighbours.note("quiet", asyncio.get_running_loop().time())
            CLIENT.set("acme")
            answer = await self.publisher.read_and_publish("acme", ADMIN, body)
            assert answer is not None
            ids = json.loads(answer.body)["ids"]
            assert isinstance(ids, list)
            return ids

        return asyncio.run(asyncio.wait_for(call(), DEADLINE))


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the portions took after which there was a rest."""
    found: list[float] = []
    monkeypatch.setattr(neighbours, "LATELY", 10 * DEADLINE)

    def rest(_pacing: Pacing, seconds: float) -> float:
        found.append(seconds)
        return 0.0

    monkeypatch.setattr(Pacing, "rest", rest)
    monkeypatch.setattr(Pacing, "ended", lambda _pacing, _seconds, _now: 0.0)
    return found


def test_beside_small_calls_of_others_a_list_is_published_in_portions(rests: list[float]) -> None:
    setting = Setting()
    ids = setting.post(2 * PORTION + 3)
    assert setting.portions.sizes == [PORTION, PORTION, 3]
    assert [one.message_id for one in setting.portions.sent] == ids
    assert len(rests) == 2


def test_a_list_of_very_many_has_larger_portions(rests: list[float]) -> None:
    setting = Setting()
    assert len(setting.post(MAX_LIST)) == MAX_LIST
    assert setting.portions.sizes == [MAX_LIST // MOST_PORTIONS] * MOST_PORTIONS
    assert len(rests) == MOST_PORTIONS - 1


@pytest.mark.usefixtures("rests")
def test_where_nobody_else_is_a_list_is_published_as_a_whole() -> None:
    setting = Setting()
    setting.post(100, beside=False)
    assert setting.portions.sizes == [100]


@pytest.mark.usefixtures("rests")
def test_where_a_call_is_taken_whole_or_not_at_all_it_stays_whole() -> None:
    setting = Setting()
    setting.portions.singly = False
    setting.post(100)
    assert setting.portions.sizes == [100]


@pytest.mark.usefixtures("rests")
def test_all_portions_together_have_the_time_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, clock = Setting(), [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            clock[0] += 4.0
            return clock[0]

    monkeypatch.setattr(publisher, "time", Clock)
    setting.post(4 * PORTION)
    assert setting.portions.timeouts == [10.0, 6.0, 2.0, publisher.LEAST_SECONDS]


@pytest.mark.usefixtures("rests")
def test_a_broker_that_goes_away_between_portions_is_an_error_of_the_call() -> None:
    setting = Setting()
    setting.portions.away_after = 1
    with pytest.raises(BrokerUnavailableError):
        setting.post(3 * PORTION)
    assert setting.portions.sizes == [PORTION], "the rest is not tried"
    setting.portions.away_after = None
    assert len(setting.post(3 * PORTION)) == 3 * PORTION
