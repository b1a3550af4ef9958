"""What an experiment's figures find wrong."""

from __future__ import annotations

import pytest

from tests.faults.figures import FEWEST_ROUNDS, FLAT_MB, RECOVERY, Figures


@pytest.fixture
def figures() -> Figures:
    return Figures(experiment="broker", seed=1)


def test_a_recovery_that_takes_longer_than_promised_is_wrong(figures: Figures) -> None:
    figures.recovered(RECOVERY)
    assert figures.ok
    figures.recovered(RECOVERY + 0.1)
    assert not figures.ok


def test_a_process_that_grows_from_round_to_round_is_wrong(figures: Figures) -> None:
    for number in range(30):
        figures.resident(1, 90 + number * FLAT_MB / 15)
    figures.judge_memory()
    assert figures.wrong == ["the resident set grew from 95 to 116 MB in 30 rounds"]


def test_a_process_that_swings_and_does_not_grow_is_fine(figures: Figures) -> None:
    for number in range(30):
        figures.resident(1, 90 + number % 3 * 20)
    figures.judge_memory()
    assert figures.ok


def test_each_process_is_held_against_itself(figures: Figures) -> None:
    for process in range(30):
        figures.resident(process, 90 + process * 10)
    for number in range(FEWEST_ROUNDS - 1):
        figures.resident(100, 90 + number * 10)
    figures.judge_memory()
    assert figures.ok
