"""Laws of autoscaling, for any load on a model of a tenant."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tenantry.actors.autoscaling import LOOK_SECONDS, Autoscaler, Sample
from tenantry.domain.limits import Limits


@dataclass
class Model:
    """Workers that store `each` messages a second, until the database's `most` is reached."""

    each: float
    most: float
    workers: int = 1
    at: float = 0.0
    busy: float = 0.0
    settled: float = 0.0
    backlog: float = 0.0

    def go_on(self, arriving: float) -> None:
        """Let the time between two looks pass."""
        able = min(self.workers * self.each, self.most)
        done = min(self.backlog / LOOK_SECONDS + arriving, able)
        self.backlog = max(0.0, self.backlog + (arriving - done) * LOOK_SECONDS)
        # Who waits for the database is busy, too.
        self.busy += LOOK_SECONDS * self.workers * (done / able)
        self.settled += done * LOOK_SECONDS
        self.at += LOOK_SECONDS

    def sample(self) -> Sample:
        return Sample(
            at=self.at,
            workers=self.workers,
            busy_seconds=self.busy,
            settled=int(self.settled),
            backlog=int(self.backlog),
        )


def follow(model: Model, arriving: list[float], limits: Limits) -> list[int]:
    """Let load come in and the workers follow it; give their numbers."""
    scaler = Autoscaler()
    numbers = []
    for rate in arriving:
        model.go_on(rate)
        wanted = scaler.look(model.sample(), limits)
        if wanted is not None:
            assert wanted.workers != model.workers
            assert wanted.reason
            model.workers = wanted.workers
        numbers.append(model.workers)
    return numbers


rates = st.floats(0, 5000, allow_subnormal=False)


@given(
    arriving=st.lists(rates, min_size=1, max_size=100),
    each=st.floats(1, 1000),
    most=st.floats(10, 10_000),
    bounds=st.tuples(st.integers(1, 64), st.integers(1, 64)).map(sorted),
)
def test_workers_stay_within_their_limits(
    arriving: list[float], each: float, most: float, bounds: list[int]
) -> None:
    limits = Limits(workers_min=bounds[0], workers_max=bounds[1])
    model = Model(each=each, most=most, workers=bounds[0])
    assert all(number in limits.workers for number in follow(model, arriving, limits))


@given(needed=st.integers(1, 60), each=st.floats(10, 1000))
def test_a_steady_load_gets_the_workers_that_it_needs_and_they_rest(
    needed: int, each: float
) -> None:
    model = Model(each=each, most=math.inf)
    load = [needed * each * 0.95] * 200
    numbers = follow(model, load, Limits(workers_max=64))
    assert needed <= numbers[-1]
    assert model.backlog <= load[0]
    assert len(set(numbers[-60:])) <= 2


@given(knee=st.integers(1, 16), each=st.floats(10, 1000))
def test_a_slow_database_is_not_given_more_than_helps_it(knee: int, each: float) -> None:
    model = Model(each=each, most=knee * each)
    numbers = follow(model, [knee * each * 2] * 400, Limits(workers_max=64))
    assert max(numbers) <= 4 * knee
    late = numbers[200:]
    assert sum(number > 2 * knee for number in late) <= len(late) // 20


@given(st.lists(rates, min_size=13, max_size=40))
def test_no_load_leaves_the_fewest(load: list[float]) -> None:
    model = Model(each=50, most=math.inf, workers=1)
    follow(model, load, Limits(workers_max=64))
    model.backlog = 0
    assert follow(model, [0.0] * 60, Limits(workers_max=64))[-1] == 1
