"""Turns at storing: by weight, without gaps, and never for ever with those who do not end."""

from __future__ import annotations

import heapq
import random
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from unittest.mock import Mock

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.messages.port import StoreUnavailableError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.turns import storing
from tenantry.turns.rests import Timed
from tenantry.turns.room import Room
from tenantry.turns.storing import FULL, FULL_BYTES, LENT_AFTER, StoringTurns
from tenantry.turns.turns import EXPECTED_FOR, LOOK_EVERY, Turn, Turns, Weights
from tests.depth import examples
from tests.fakes.messages import incoming
from tests.waiting import DEADLINE, eventually

ROOM, CONNECTIONS = 3.0, 16
ONE = Room(least=1, most=1)


@dataclass(kw_only=True)
class Tenant:
    """One that always has more to store: by some workers, so many messages in so many seconds.

    With a `gap`, each worker has its next batch so many seconds after the one before. With `chance`
    that and the time of a batch are only the averages.
    """

    weight: int = 1
    workers: int = 3
    messages: int = FULL
    size: int = 0
    seconds: float = 0.05
    gap: float = 0.0
    chance: random.Random | None = None
    more: bool = False
    stored: int = 0
    seconds_waited: float = 0.0
    waiting: list[tuple[Turn, float]] = field(default_factory=list)

    def lasts(self) -> float:
        """Give the seconds of the next batch."""
        return self.seconds * (self.chance.uniform(0, 2) if self.chance else 1)

    def lets_wait(self) -> float:
        """Give the seconds until a worker's next batch."""
        return self.gap * (self.chance.expovariate(1) if self.chance else 1)


class Storing:
    """Tenants whose workers store batch after batch, in a time of its own."""

    def __init__(self, tenants: dict[str, Tenant], *, room: float = ROOM) -> None:
        self.time = 0.0
        self.tenants = tenants
        weights = Weights()
        for name, one in tenants.items():
            weights.weigh(name, one.weight)
        self.turns = StoringTurns(
            weights,
            room=Room(least=room, most=room),
            connections=CONNECTIONS,
            now=lambda: self.time,
        )
        self._due: list[tuple[float, int, str, Turn | None]] = []
        """Turns that end, and workers that have another batch (None), by time."""
        self._number = 0

    def ask(self, name: str) -> None:
        one = self.tenants[name]
        room = self.turns.room(one.messages, one.size)
        if one.more:
            self.turns.backlogs.begun(name)
        turn = self.turns.turns.ask(name, room, more=one.more)
        one.waiting.append((turn, self.time))
        self._begin_all()

    def run(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        for name, one in self.tenants.items():
            for _ in range(one.workers):
                self.ask(name)
        look_at = self.time
        while self._due:
            due, looks = self._due[0][0], [turn for turn, _ in self._waiting()]
            self.time = min(due, look_at, *(turn.look_at for turn in looks))
            if self.time > seconds:
                return
            if due > self.time:
                look_at = max(look_at, self.time + LOOK_EVERY)
                for turn in looks:
                    turn.look_at = inf
                self.turns.turns.look()
                self._begin_all()
                continue
            _, _, name, ends = heapq.heappop(self._due)
            one = self.tenants[name]
            if ends is None:
                self.ask(name)
                continue
            one.stored += one.messages
            self.turns.ended(ends)
            self._begin_all()
            if one.gap:
                self._in(one.lets_wait(), name, None)
            else:
                self.ask(name)
            check()

    def _in(self, seconds: float, name: str, turn: Turn | None) -> None:
        self._number += 1
        heapq.heappush(self._due, (self.time + seconds, self._number, name, turn))

    def _waiting(self) -> list[tuple[Turn, float]]:
        return [waits for one in self.tenants.values() for waits in one.waiting]

    def _begin_all(self) -> None:
        for name, one in self.tenants.items():
            for turn, since in one.waiting.copy():
                if turn.grant is not None:
                    one.waiting.remove((turn, since))
                    one.seconds_waited = max(one.seconds_waited, self.time - since)
                    self._in(one.lasts(), name, turn)


tenants = st.builds(
    Tenant,
    weight=st.integers(1, 10),
    workers=st.just(12),
    messages=st.integers(300, 1000),
    seconds=st.floats(0.02, 0.2),
)


@settings(max_examples=examples(8, 60), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.dictionaries(st.sampled_from("abcde"), tenants, min_size=2))
def test_tenants_that_compete_store_by_their_weights(competing: dict[str, Tenant]) -> None:
    # Each has enough workers for all the room, and none takes so long that its time counts.
    fastest = min(one.seconds / one.messages for one in competing.values())
    for one in competing.values():
        one.seconds = min(one.seconds, fastest * one.messages * 6)
    storing = Storing(competing)
    storing.run(30.0)
    had = {
        name: one.stored / one.messages * storing.turns.room(one.messages) / one.weight
        for name, one in competing.items()
    }
    fair = statistics.fmean(had.values(), [one.weight for one in competing.values()])
    for name in competing:
        # Nobody is interrupted: each may be a batch ahead or behind.
        assert had[name] == pytest.approx(fair, rel=0.05, abs=1.0)


@settings(max_examples=examples(12, 300))
@given(
    st.integers(1, 5),
    st.lists(st.floats(0, EXPECTED_FOR * 0.9), min_size=2, max_size=2),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_a_tenant_with_a_backlog_has_its_share_though_it_has_no_batch_ready_when_turns_are_given(
    weight: int, gaps: list[float], workers: list[int]
) -> None:
    heavy = Tenant(weight=weight, gap=gaps[0], workers=workers[0], more=True)
    light = Tenant(gap=gaps[1], workers=workers[1], more=True)
    Storing({"heavy": heavy, "light": light}, room=1.0).run(60.0)
    assert heavy.stored / light.stored == pytest.approx(weight, rel=0.02)


@settings(max_examples=examples(3, 60), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_tenants_with_backlogs_whose_batches_come_at_random_share_and_hardly_wait_for_one_another(
    seed: int, weight: int
) -> None:
    chance = random.Random(seed)

    def stored(*, more: bool) -> list[float]:
        competing = {
            name: Tenant(gap=0.03, chance=chance, more=more, weight=weight if name == "0" else 1)
            for name in "0123456789"
        }
        Storing(competing, room=1000.0).run(20.0)
        return [one.stored / one.weight for one in competing.values()]

    shares = stored(more=True)
    assert max(shares) < min(shares) * 1.1
    if weight == 1:
        assert sum(shares) > sum(stored(more=False)) * 0.95


@settings(max_examples=examples(12, 300))
@given(st.floats(EXPECTED_FOR * 1.1, 2.0), st.booleans(), st.integers(1, 1000))
def test_a_tenant_that_is_slow_to_have_its_next_batch_keeps_others_waiting_for_a_moment_only(
    gap: float, more: bool, weight: int
) -> None:
    slow, other = Tenant(weight=weight, gap=gap, workers=1, more=more), Tenant(more=True)
    Storing({"slow": slow, "other": other}, room=1.0).run(60.0)
    batches = slow.stored / FULL + 1
    taken = batches * (slow.seconds + (EXPECTED_FOR if more else 0))
    assert other.stored >= FULL * ((60.0 - taken) / other.seconds - batches)


@given(st.dictionaries(st.sampled_from("abcde"), tenants, min_size=1))
def test_room_is_left_to_nobody_while_somebody_waits(competing: dict[str, Tenant]) -> None:
    storing = Storing(competing)

    def check() -> None:
        if storing.turns.waiting:
            assert storing.turns.turns.taken_up >= ROOM or storing.turns.turns.running >= 12

    storing.run(5.0, check)


def test_one_tenant_alone_is_kept_from_nothing_but_more_than_all_the_room() -> None:
    storing = Storing({"alone": Tenant(workers=3)})
    storing.run(5.0)
    assert storing.tenants["alone"].seconds_waited == 0.0
    assert storing.tenants["alone"].stored == pytest.approx(3 * FULL * 5 / 0.05, rel=0.02)


def test_small_batches_of_others_take_no_room_from_one_that_has_large_ones() -> None:
    flood, quiet = Tenant(workers=3), Tenant(workers=2, messages=1, seconds=0.005)
    storing = Storing({"flood": flood, "quiet": quiet}, room=1.0)
    storing.run(5.0)
    assert flood.seconds_waited == quiet.seconds_waited == 0.0
    assert not storing.turns.turns._large.keys() - {"flood"}


@pytest.mark.parametrize("messages", [1, 80, 1000])
def test_few_messages_that_are_huge_are_no_small_batch(messages: int) -> None:
    huge = Tenant(workers=12, messages=messages, size=2 * FULL_BYTES)
    usual = Tenant(workers=12, weight=3)
    storing = Storing({"huge": huge, "usual": usual})
    storing.run(30.0)
    had = {
        name: one.stored / one.messages * storing.turns.room(one.messages, one.size)
        for name, one in (("huge", huge), ("usual", usual))
    }
    assert had["usual"] / had["huge"] == pytest.approx(3, rel=0.1)


@settings(max_examples=examples(8, 300))
@given(st.integers(1, 64))
def test_small_batches_of_one_that_seldom_stores_wait_for_nobody(workers: int) -> None:
    flood, quiet = Tenant(workers=workers), Tenant(workers=0, messages=1, seconds=0.002)
    storing = Storing({"flood": flood, "quiet": quiet})
    last = [0.0]

    def check() -> None:
        if storing.time - last[0] >= 0.5:
            last[0] = storing.time
            turn = storing.turns.turns.ask("quiet", storing.turns.room(1))
            assert turn.grant is not None
            storing.turns.ended(turn)

    storing.run(10.0, check)
    assert last[0] > 5.0


@pytest.mark.parametrize("more", [False, True])
def test_one_whose_batches_do_not_end_does_not_keep_others_from_storing(more: bool) -> None:
    hangs = Tenant(weight=1000, workers=64, seconds=1e9, more=more)
    goes_on = Tenant(workers=3, more=more)
    storing = Storing({"hangs": hangs, "goes on": goes_on})
    storing.run(60.0)
    assert hangs.stored == 0
    assert goes_on.seconds_waited <= CONNECTIONS * LENT_AFTER
    # All but what the other has taken up for a second each.
    assert goes_on.stored >= FULL * 30 / 0.05


def test_what_looks_small_and_takes_long_counts_by_its_time() -> None:
    slow, usual = Tenant(workers=6, messages=200, seconds=0.8), Tenant(workers=6)
    storing = Storing({"slow": slow, "usual": usual})
    storing.run(60.0)
    assert slow.stored < usual.stored / 3


def test_handlers_places_are_shared_by_the_time_that_they_are_held() -> None:
    time, weights = [0.0], Weights()
    weights.weigh("heavy", 3)
    turns = Turns(weights, room=Room(least=2, most=2), most=2, most_of_one=2, now=lambda: time[0])
    lasts, had = {"heavy": 0.25, "light": 0.05}, dict.fromkeys(("heavy", "light"), 0.0)
    waiting = [(name, turns.ask(name, 1.0)) for name in lasts for _ in range(4)]
    running: list[tuple[float, str, Turn]] = []
    while time[0] < 60:
        for name, turn in waiting.copy():
            if turn.grant is not None:
                waiting.remove((name, turn))
                running.append((time[0] + lasts[name], name, turn))
        first = min(running, key=lambda one: one[0])
        running.remove(first)
        time[0], name, turn = first
        had[name] += lasts[name]
        waiting.append((name, turns.ask(name, 1.0)))
        turns.ended(turn, lambda seconds: seconds)
    assert had["heavy"] / had["light"] == pytest.approx(3, rel=0.05)


def room_found(
    stored: Callable[[float], float], *, seconds: int, noise: float = 0.0
) -> list[float]:
    """Give how much room there was, each second, where so much is stored with so much of it."""
    room, sizes, chance = Room(least=1.0, most=16.0), [], random.Random(1)
    for tick in range(seconds * 20):
        rate = stored(room.size) * chance.uniform(1 - noise, 1 + noise)
        room.note(rate / 20, tick / 20, contended=True)
        if tick % 20 == 0:
            sizes.append(room.size)
    return sizes


@given(st.integers(1, 7))
def test_there_is_as_much_room_as_pays(enough: int) -> None:
    sizes = room_found(lambda size: min(size, enough), seconds=300)
    assert statistics.median(sizes[150:]) == enough
    assert max(sizes) <= enough + 1


def test_room_that_does_not_pay_any_more_is_taken_back() -> None:
    room = Room(least=1.0, most=16.0)
    for tick in range(4000):
        enough = 5 if tick < 2000 else 1
        room.note(min(room.size, enough) / 20, tick / 20, contended=True)
        if tick == 1999:
            assert room.size >= 5
    assert room.size <= 2


def test_what_is_stored_while_nobody_waits_tells_nothing_about_room() -> None:
    room = Room(least=1.0, most=16.0)
    for tick in range(4000):
        room.note(room.size / 20, tick / 20, contended=tick % 10 > 0)
    assert room.size == 1.0


def test_on_a_busy_machine_there_is_little_more_room_than_pays() -> None:
    sizes = room_found(lambda size: min(size, 2.0), seconds=600, noise=0.5)
    assert statistics.median(sizes) <= 3


def test_a_thread_waits_for_its_turn_and_no_longer_than_its_patience() -> None:
    turns = Turns(Weights(), room=ONE, most=1, most_of_one=1)
    first = turns.ask("a", 1.0)
    assert turns.take("b", 1.0, patience=0.0) is None
    assert turns.waiting == 0
    got: list[Turn | None] = []
    thread = threading.Thread(target=lambda: got.append(turns.take("b", 1.0, patience=DEADLINE)))
    thread.start()
    eventually(lambda: turns.waiting == 1)
    turns.ended(first, lambda seconds: seconds)
    thread.join(DEADLINE)
    assert got[0] is not None
    turns.ended(got[0], lambda seconds: seconds)
    assert turns.running == 0


def test_the_room_of_one_that_hangs_is_lent_though_nothing_ends() -> None:
    turns = Turns(Weights(), room=ONE, most=9, most_of_one=9, lent_after=0.05)
    hangs = turns.ask("a", 1.0)
    other = turns.take("b", 1.0, patience=DEADLINE)
    assert other is not None
    turns.ended(other, lambda seconds: seconds)
    turns.ended(hangs, lambda seconds: seconds)
    assert (turns.running, turns.taken_up) == (0, 0.0)


def test_a_thread_has_its_turn_though_one_that_was_expected_does_not_come() -> None:
    weights = Weights()
    weights.weigh("heavy", 3)
    turns = Turns(weights, room=ONE, most=9, most_of_one=9)
    for _ in range(2):
        for tenant in ("heavy", "light"):
            turn = turns.take(tenant, 1.0, patience=DEADLINE, more=True)
            assert turn is not None
            turns.ended(turn, lambda _: 1.0)
    assert turns.running == turns.waiting == 0


def storing_turns() -> StoringTurns:
    return StoringTurns(Weights(), room=ONE, connections=1)


def test_a_batch_whose_turn_does_not_come_is_left_and_the_database_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storing, "PATIENCE", 0.0)
    turns, database = storing_turns(), Mock()
    assert turns.take("other", 1000) is not None
    result = PostgresMessageStore(database, turns=turns).store(
        "acme", [incoming("1"), incoming("2")]
    )
    assert (result.left, result.stored) == ((0, 1), 0)
    assert not database.mock_calls


def test_a_batch_takes_its_turn_by_its_bytes_as_well() -> None:
    turns, asked = storing_turns(), list[float]()
    turns.turns.take = lambda _, room, **_more: asked.append(room)  # type: ignore[method-assign, assignment]
    large = incoming("1", b"x" * FULL_BYTES)
    assert PostgresMessageStore(Mock(), turns=turns).store("acme", [large]).left == (0,)
    assert asked[0] > 1.0


def test_a_backlog_beside_quiet_tenants_rests_before_it_asks_for_its_turn() -> None:
    turns, happened = storing_turns(), list[str]()
    has_rested = iter([True, False])

    def rest(tenant: str) -> bool:
        happened.append(f"{tenant} rests")
        return next(has_rested)

    turns.rests.rest = rest  # type: ignore[method-assign]
    turns.turns.take = lambda tenant, *_, **_more: happened.append(f"{tenant} asks")  # type: ignore[method-assign]
    store = PostgresMessageStore(Mock(), turns=turns)
    for beside in (True, True, False):
        assert store.store("acme", [incoming("1")], more=True, beside=beside).left == (0,)
    assert happened == ["acme rests", "acme asks", "acme rests", "acme asks"]


def test_it_is_timed_how_long_a_batch_takes_in_the_store_once_it_has_its_turn() -> None:
    turns, database, timed = storing_turns(), Mock(), list[tuple[object, ...]]()

    @contextmanager
    def storing(tenant: str, messages: int, size: int, *, backlog: bool) -> Iterator[Timed]:
        timed.append((tenant, messages, size, backlog, turns.turns.running))
        yield Timed()

    turns.rests.storing = storing  # type: ignore[method-assign]
    database.connection.side_effect = lambda: timed.append(("connects",))
    store, batch = PostgresMessageStore(database, turns=turns), [incoming("1", b"123")]
    for more, beside in ((False, False), (True, False), (False, True)):
        with pytest.raises(TypeError):  # that is no connection
            store.store("acme", batch, more=more, beside=beside)
        assert timed == [("acme", 1, 3, more or beside, 1), ("connects",)]
        timed.clear()


def test_a_turn_is_over_where_the_database_is_away() -> None:
    turns, database = storing_turns(), Mock()
    database.connection.side_effect = DatabaseUnavailableError("away")
    store = PostgresMessageStore(database, turns=turns)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            store.store("acme", [incoming("1")])
    assert turns.turns.running == 0
