"""The rules of restarting, for any course of failures."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from tenantry.actors.backoff import HOPELESS, LONGEST_BACKOFF, Intensity, Restart, Restarts, backoff

intensities = st.builds(
    Intensity,
    restarts=st.integers(0, 6),
    within=st.floats(0.1, 60, allow_nan=False),
)
gaps = st.lists(st.floats(0, 20, allow_nan=False), max_size=60)
children = st.sampled_from(["worker", "consumer", "acme", "globex"])


def judged(restarts: Restarts, times: list[float], child: str = "worker") -> list[Restart]:
    return [restarts.failed(child, now) for now in times]


@given(intensities, gaps)
def test_no_child_is_started_again_more_often_than_its_intensity_allows(
    intensity: Intensity, gaps: list[float]
) -> None:
    times = list(accumulate(gaps))
    verdicts = judged(Restarts(intensity), times)
    started = [at for at, one in zip(times, verdicts, strict=True) if not one.given_up]
    for end in started:
        window = [at for at in started if end - intensity.within < at <= end]
        assert len(window) <= intensity.restarts


@given(intensities, gaps)
def test_a_child_is_given_up_only_for_one_failure_too_many_within_the_period(
    intensity: Intensity, gaps: list[float]
) -> None:
    times = list(accumulate(gaps))
    for index, verdict in enumerate(judged(Restarts(intensity), times)):
        period = [at for at in times[: index + 1] if at > times[index] - intensity.within]
        assert verdict.given_up == (len(period) > intensity.restarts)


@given(intensities, st.lists(st.tuples(children, st.floats(0, 20, allow_nan=False)), max_size=80))
def test_a_child_is_judged_by_its_own_failures_alone(
    intensity: Intensity, failures: list[tuple[str, float]]
) -> None:
    together, now = Restarts(intensity), 0.0
    seen: dict[str, list[tuple[float, bool]]] = {}
    for child, gap in failures:
        now += gap
        seen.setdefault(child, []).append((now, together.failed(child, now).given_up))
    for child, course in seen.items():
        alone = judged(Restarts(intensity), [at for at, _ in course], child)
        assert [given_up for _, given_up in course] == [one.given_up for one in alone]


@given(intensities, gaps, gaps)
def test_what_is_forgotten_counts_no_more(
    intensity: Intensity, before: list[float], after: list[float]
) -> None:
    restarts = Restarts(intensity)
    judged(restarts, list(accumulate(before)))
    restarts.forget("worker")
    later = [1000 + at for at in accumulate(after)]
    fresh = judged(Restarts(intensity), later)
    assert [one.given_up for one in judged(restarts, later)] == [one.given_up for one in fresh]


@given(intensities, gaps)
def test_one_that_fails_although_it_was_given_up_is_left_alone_for_long(
    intensity: Intensity, gaps: list[float]
) -> None:
    verdicts = judged(Restarts(intensity), list(accumulate(gaps)))
    for before, verdict in pairwise(verdicts):
        if before.given_up and verdict.given_up:
            assert verdict.delay == HOPELESS
        else:
            assert verdict.delay <= LONGEST_BACKOFF


@given(st.integers(0, 10_000), st.floats(0.1, 60, allow_nan=False))
def test_pauses_are_bounded_and_never_nothing(failures: int, longest: float) -> None:
    assert 0.05 <= backoff(failures, longest) <= longest
