"""Laws of `decide`, `evolve` and `fold` that hold for every history."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tenantry.domain import names
from tenantry.domain.commands import Command, DomainError
from tenantry.domain.events import DriftRepaired, TenantCreated, TenantEvent
from tenantry.domain.limits import MAX_WORKERS, MIN_WORKERS
from tenantry.domain.tenant import (
    MAX_NAME,
    MAX_PARTITIONS,
    MAX_TOPICS,
    MIN_PARTITIONS,
    Lifecycle,
    TenantState,
    decide,
    evolve,
    fold,
)
from tests.property.strategies import TENANT, commands

START = datetime(2030, 1, 1, tzinfo=UTC)
History = list[tuple[TenantEvent, datetime]]

histories = st.lists(commands(), max_size=40)


def live(wishes: list[Command]) -> tuple[TenantState | None, History]:
    """Carry out what is allowed of `wishes`; give the state that was kept and what happened."""
    state: TenantState | None = None
    history: History = []
    for number, wish in enumerate(wishes):
        try:
            happened = decide(state, wish)
        except DomainError:
            continue
        at = START + timedelta(seconds=number)
        for event in happened:
            state = evolve(state, event, at)
            history.append((event, at))
    return state, history


def check_limits(state: TenantState) -> None:
    assert names.is_tenant_id(state.tenant_id)
    assert 1 <= len(state.name) <= MAX_NAME
    assert MIN_WORKERS <= state.workers <= MAX_WORKERS
    assert state.workers in state.limits.workers
    assert state.limits.changed({}) == state.limits
    assert MIN_PARTITIONS <= state.partitions <= MAX_PARTITIONS
    assert len(state.topics) <= MAX_TOPICS
    assert len(set(state.topics)) == len(state.topics)
    assert all(names.is_topic(topic) for topic in state.topics)
    assert len(state.topic_partitions) == len(state.topics)
    assert all(MIN_PARTITIONS <= one <= MAX_PARTITIONS for one in state.topic_partitions)
    assert set(state.ordered) <= set(state.topics)
    assert state.created_at <= state.updated_at
    if state.parked is not None:
        assert state.lifecycle is Lifecycle.PAUSED
    assert (state.parked is None) == (state.parked_at is None)


@given(histories)
def test_no_history_leads_outside_the_limits(wishes: list[Command]) -> None:
    _, history = live(wishes)
    state: TenantState | None = None
    for number, (event, at) in enumerate(history, 1):
        state = evolve(state, event, at)
        check_limits(state)
        assert state.version == number
        assert state.tenant_id == TENANT


@given(histories)
def test_what_was_recorded_replays_to_the_state_that_was_live(wishes: list[Command]) -> None:
    state, history = live(wishes)
    assert fold(history) == state


@given(histories, st.data())
def test_folding_in_two_parts_is_folding_at_once(
    wishes: list[Command], data: st.DataObject
) -> None:
    state, history = live(wishes)
    cut = data.draw(st.integers(0, len(history)))
    assert fold(history[cut:], fold(history[:cut])) == state


@given(histories, commands())
def test_a_decision_depends_on_nothing_but_state_and_command(
    wishes: list[Command], wish: Command
) -> None:
    state, _ = live(wishes)

    def outcome() -> object:
        try:
            return decide(state, wish)
        except DomainError as error:
            return type(error), str(error)

    assert outcome() == outcome()


@given(histories, commands())
def test_a_command_repeated_at_once_adds_nothing_or_is_refused(
    wishes: list[Command], wish: Command
) -> None:
    state, _ = live(wishes)
    try:
        first = decide(state, wish)
    except DomainError:
        return
    state = fold(((event, START) for event in first), state)
    try:
        again = decide(state, wish)
    except DomainError:
        return
    # Twice makes two passwords, a drift may come twice; everything else is so already.
    assert again == () or type(wish).__name__ in {
        "RotateCredentials",
        "GrantConsumerAccess",
        "GrantSqlAccess",
        "RevokeSqlAccess",
        "ConfirmRepaired",
    }


@given(histories)
def test_a_refused_id_is_free_again_once_it_is_deleted(wishes: list[Command]) -> None:
    _, history = live(wishes)
    state: TenantState | None = None
    for event, at in history:
        if isinstance(event, TenantCreated):
            assert state is None or not state.exists
        else:
            assert state is not None
            # What is left of a deleted tenant may be found, and removed, later.
            assert state.exists or isinstance(event, DriftRepaired)
        state = evolve(state, event, at)


def without_times(state: TenantState) -> TenantState:
    parked_at = None if state.parked_at is None else START
    return replace(state, created_at=START, updated_at=START, parked_at=parked_at)


@given(histories, st.timedeltas(timedelta(), timedelta(days=1)))
def test_a_later_clock_changes_nothing_but_the_times(
    wishes: list[Command], later: timedelta
) -> None:
    state, history = live(wishes)
    moved = fold((event, at + later) for event, at in history)
    if state is None or moved is None:
        assert state is moved
    else:
        assert without_times(moved) == without_times(state)
