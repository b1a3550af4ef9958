"""What each command leads to, in each state of a tenant."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tenantry.domain import names
from tenantry.domain.commands import (
    AbandonProvisioning,
    AddTopics,
    ChangeLimits,
    Command,
    ConfirmDeleted,
    ConfirmProvisioned,
    CreateTenant,
    DomainError,
    InvalidCommandError,
    ParkTenant,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RotateCredentials,
    TenantExistsError,
    TenantNotFoundError,
    WrongStateError,
)
from tenantry.domain.events import (
    CredentialsRotated,
    DeletionRequested,
    LimitsChanged,
    ProvisioningAbandoned,
    TenantCreated,
    TenantDeleted,
    TenantEvent,
    TenantParked,
    TenantPaused,
    TenantProvisioned,
    TenantResumed,
    TopicsAdded,
    WorkersResized,
)
from tenantry.domain.limits import Limits
from tenantry.domain.tenant import MAX_TOPICS, Lifecycle, TenantState, decide, evolve, fold
from tenantry.domain.topics import Ordering, Topic

T = "acme"
AT = datetime(2030, 1, 1, tzinfo=UTC)

ACTIVE = TenantState(
    tenant_id=T,
    name="Acme",
    lifecycle=Lifecycle.ACTIVE,
    workers=3,
    topics=("events",),
    partitions=2,
    version=2,
    created_at=AT,
    updated_at=AT,
)
STATES = {
    "none": None,
    "provisioning": replace(ACTIVE, lifecycle=Lifecycle.PROVISIONING),
    "active": ACTIVE,
    "paused": replace(ACTIVE, lifecycle=Lifecycle.PAUSED),
    "parked": replace(ACTIVE, lifecycle=Lifecycle.PAUSED, parked="kept failing", parked_at=AT),
    "deleting": replace(ACTIVE, lifecycle=Lifecycle.DELETING),
    "deleted": replace(ACTIVE, lifecycle=Lifecycle.DELETED),
}

CREATE = CreateTenant(tenant_id=T, name="Acme", workers=3, topics=("a",), partitions=2)
CREATED = TenantCreated(
    tenant_id=T, name="Acme", workers=3, topics=("a",), partitions=2, topic_partitions=(2,)
)
PROVISIONED = ConfirmProvisioned(tenant_id=T)
ABANDON = AbandonProvisioning(tenant_id=T, reason="no broker")
RESIZE = ResizeWorkers(tenant_id=T, workers=5)
LIMIT = ChangeLimits(tenant_id=T, changes={"rate": 10})
PAUSE = PauseTenant(tenant_id=T)
PARK = ParkTenant(tenant_id=T, reason="kept failing")
RESUME = ResumeTenant(tenant_id=T)
ROTATE = RotateCredentials(tenant_id=T)
ADD = AddTopics(tenant_id=T, topics=("events", "logs"))
DELETE = RequestDeletion(tenant_id=T, retain=True)
DELETED = ConfirmDeleted(tenant_id=T, queued=1, stored=2)

RESIZED = (WorkersResized(tenant_id=T, previous=3, workers=5),)
LIMITED = (LimitsChanged(tenant_id=T, limits=Limits(rate=10)),)
ROTATED = (CredentialsRotated(tenant_id=T),)
ADDED = (TopicsAdded(tenant_id=T, topics=("logs",), topic_partitions=(2,)),)
PARKED = (TenantParked(tenant_id=T, reason="kept failing"),)
RESUMED = (TenantResumed(tenant_id=T),)
GOING = (DeletionRequested(tenant_id=T, retain=True),)

Answer = tuple[TenantEvent, ...] | type[DomainError]
MISSING, EXISTS, WRONG = TenantNotFoundError, TenantExistsError, WrongStateError

#             none     provisioning  active   paused    parked    deleting  deleted
TABLE: list[tuple[Command, list[Answer]]] = [
    (CREATE, [(CREATED,), EXISTS, EXISTS, EXISTS, EXISTS, EXISTS, (CREATED,)]),
    (PROVISIONED, [MISSING, (TenantProvisioned(tenant_id=T),), (), (), (), (), MISSING]),
    (
        ABANDON,
        [
            MISSING,
            (ProvisioningAbandoned(tenant_id=T, reason="no broker"),),
            WRONG,
            WRONG,
            WRONG,
            WRONG,
            MISSING,
        ],
    ),
    (RESIZE, [MISSING, WRONG, RESIZED, RESIZED, RESIZED, WRONG, MISSING]),
    (LIMIT, [MISSING, WRONG, LIMITED, LIMITED, LIMITED, WRONG, MISSING]),
    (PAUSE, [MISSING, WRONG, (TenantPaused(tenant_id=T),), (), (), WRONG, MISSING]),
    (PARK, [MISSING, WRONG, PARKED, PARKED, (), WRONG, MISSING]),
    (RESUME, [MISSING, WRONG, (), RESUMED, RESUMED, WRONG, MISSING]),
    (ROTATE, [MISSING, WRONG, ROTATED, ROTATED, ROTATED, WRONG, MISSING]),
    (ADD, [MISSING, WRONG, ADDED, ADDED, ADDED, WRONG, MISSING]),
    (DELETE, [MISSING, GOING, GOING, GOING, GOING, (), MISSING]),
    (
        DELETED,
        [
            MISSING,
            WRONG,
            WRONG,
            WRONG,
            WRONG,
            (TenantDeleted(tenant_id=T, queued=1, stored=2),),
            MISSING,
        ],
    ),
]


@pytest.mark.parametrize(
    ("command", "state", "answer"),
    [
        pytest.param(command, STATES[state], answer, id=f"{type(command).__name__}-{state}")
        for command, answers in TABLE
        for state, answer in zip(STATES, answers, strict=True)
    ],
)
def test_a_command_has_its_answer_in_each_state(
    command: Command, state: TenantState | None, answer: Answer
) -> None:
    if isinstance(answer, tuple):
        assert decide(state, command) == answer
    else:
        with pytest.raises(answer, match="acme"):
            decide(state, command)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (replace(CREATE, tenant_id="Acme"), "id"),
        (replace(CREATE, tenant_id=""), "id"),
        (replace(CREATE, tenant_id="-a"), "id"),
        (replace(CREATE, tenant_id="a-"), "id"),
        (replace(CREATE, tenant_id="a" * 41), "id"),
        (replace(CREATE, tenant_id="a\n"), "id"),
        (replace(CREATE, tenant_id="é"), "id"),
        (replace(CREATE, name=""), "name"),
        (replace(CREATE, name="   "), "name"),
        (replace(CREATE, name="x" * 201), "name"),
        (replace(CREATE, name="a\0b"), "name"),
        (replace(CREATE, workers=0), "workers"),
        (replace(CREATE, workers=65), "workers"),
        (replace(CREATE, partitions=0), "partitions"),
        (replace(CREATE, partitions=65), "partitions"),
        (replace(CREATE, topics=("a", "a")), "topics"),
        (replace(CREATE, topics=("default",)), "topics"),
        (replace(CREATE, topics=("a.b",)), "topics"),
        (replace(CREATE, topics=tuple(f"t{n}" for n in range(MAX_TOPICS + 1))), "topics"),
    ],
)
def test_a_tenant_outside_the_limits_is_not_created(command: CreateTenant, field: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        decide(None, command)
    assert caught.value.field == field


@pytest.mark.parametrize("workers", [0, 65, -1])
def test_a_tenant_is_not_resized_beyond_the_limits(workers: int) -> None:
    with pytest.raises(InvalidCommandError):
        decide(ACTIVE, ResizeWorkers(tenant_id=T, workers=workers))


def limited(**limits: int) -> TenantState:
    return replace(ACTIVE, limits=replace(Limits(), **limits))


def test_limits_that_are_not_named_stay_and_none_lifts_one() -> None:
    state = limited(rate=10, burst=20, weight=3)
    changed = decide(state, ChangeLimits(tenant_id=T, changes={"burst": None, "channels": 4}))
    assert changed == (LimitsChanged(tenant_id=T, limits=Limits(rate=10, weight=3, channels=4)),)
    lifted = decide(state, ChangeLimits(tenant_id=T, changes={"rate": None, "weight": None}))
    assert lifted == (LimitsChanged(tenant_id=T, limits=Limits()),)


def test_limits_that_are_so_already_change_nothing() -> None:
    assert decide(limited(rate=10), ChangeLimits(tenant_id=T, changes={"rate": 10})) == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"weight": 0}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"rate": 0}, "rate"),
        ({"burst": 5}, "burst"),
        ({"backlog_messages": -1}, "backlog.messages"),
        ({"retention_seconds": 0}, "retention.age"),
        ({"workers_min": 5, "workers_max": 4}, "workers_min"),
        ({"speed": 5}, "speed"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, int | None], field: str) -> None:
    with pytest.raises(InvalidCommandError) as caught:
        decide(ACTIVE, ChangeLimits(tenant_id=T, changes=changes))
    assert caught.value.field == field


def test_workers_are_brought_within_their_limits_and_stay_there() -> None:
    events = decide(ACTIVE, ChangeLimits(tenant_id=T, changes={"workers_min": 4}))
    assert [type(event) for event in events] == [LimitsChanged, WorkersResized]
    with pytest.raises(InvalidCommandError, match="4 to 64"):
        decide(limited(workers_min=4), ResizeWorkers(tenant_id=T, workers=3))


def test_a_tenant_has_no_more_topics_than_allowed() -> None:
    state = replace(ACTIVE, topics=tuple(f"t{number}" for number in range(MAX_TOPICS)))
    assert decide(state, AddTopics(tenant_id=T, topics=("t1",))) == ()
    with pytest.raises(InvalidCommandError):
        decide(state, AddTopics(tenant_id=T, topics=("one-more",)))


def test_a_topic_has_the_partitions_and_the_ordering_that_were_asked_for() -> None:
    orders = Topic(name="orders", partitions=8, ordering=Ordering.PARTITION)
    create = CreateTenant(tenant_id=T, name="n", workers=1, topics=("events", orders), partitions=2)
    state = fold(((one, AT) for one in decide(None, create)), None)
    state = fold(((one, AT) for one in decide(state, ConfirmProvisioned(tenant_id=T))), state)
    audit = Topic(name="audit", ordering=Ordering.PARTITION)
    state = fold(
        ((one, AT) for one in decide(state, AddTopics(tenant_id=T, topics=(audit,)))), state
    )
    assert state is not None
    assert state.topics == ("events", "orders", "audit")
    assert [state.partitions_of(one) for one in state.topics] == [2, 8, 2]
    assert state.ordered == ("orders", "audit")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (Topic(name="events", partitions=3), "is there already, with 2 partition"),
        (Topic(name="events", ordering=Ordering.PARTITION), "ordering none"),
        (Topic(name="orders", partitions=65), "asks for 65 partitions"),
        (Topic(name="default", partitions=1), "is no topic name"),
    ],
)
def test_what_a_topic_can_not_have_is_refused(asked: Topic, problem: str) -> None:
    with pytest.raises(InvalidCommandError, match=problem):
        decide(ACTIVE, AddTopics(tenant_id=T, topics=(asked,)))


def test_what_is_so_already_of_a_topic_may_be_said_again() -> None:
    same = Topic(name="events", partitions=2, ordering=Ordering.NONE)
    assert decide(ACTIVE, AddTopics(tenant_id=T, topics=(same,))) == ()


def test_topics_of_events_without_settings_have_the_partitions_of_their_tenant() -> None:
    created = TenantCreated(tenant_id=T, name="n", workers=1, topics=("t",), partitions=3)
    more = TopicsAdded(tenant_id=T, topics=("u",))
    state = fold([(created, AT), (more, AT)])
    assert state is not None
    assert [state.partitions_of(one) for one in ("t", "u")] == [3, 3]
    assert state.ordered == ()


def test_resizing_to_the_present_size_changes_nothing() -> None:
    assert decide(ACTIVE, ResizeWorkers(tenant_id=T, workers=3)) == ()


def test_resuming_revives_a_parked_tenant() -> None:
    state = evolve(STATES["parked"], TenantResumed(tenant_id=T), AT)
    assert (state.lifecycle, state.parked) == (Lifecycle.ACTIVE, None)


def test_an_abandoned_id_can_be_created_again() -> None:
    state = evolve(STATES["provisioning"], ProvisioningAbandoned(tenant_id=T, reason="x"), AT)
    assert not state.exists
    again = fold([(event, AT) for event in decide(state, CREATE)], state)
    assert again is not None
    assert (again.version, again.lifecycle) == (state.version + 1, Lifecycle.PROVISIONING)


def test_a_life_cannot_begin_in_the_middle() -> None:
    with pytest.raises(ValueError, match="does not begin"):
        fold([(TenantPaused(tenant_id=T), AT)])


def test_names_of_tenants_fit_the_places_they_are_used_in() -> None:
    longest = "a" * 40
    assert names.is_tenant_id(longest)
    assert len(names.partition_table_name(longest)) <= 63
    assert names.category(names.journal_stream("a-b-c")) == "tenant"
    assert names.category(names.dead_letter_journal_stream("a-b-c")) == "dead_letters"


def test_each_creation_on_a_stream_begins_another_incarnation() -> None:
    created = TenantCreated(tenant_id=T, name="n", workers=1, topics=("t",), partitions=1)
    events: list[TenantEvent] = [
        created,
        TenantProvisioned(tenant_id=T),
        DeletionRequested(tenant_id=T, retain=True),
        TenantDeleted(tenant_id=T, queued=0, stored=0),
        created,
        ProvisioningAbandoned(tenant_id=T, reason="r"),
        created,
    ]
    folded = [fold((one, AT) for one in events[: n + 1]) for n in range(len(events))]
    assert [one and one.incarnation for one in folded] == [1, 1, 1, 1, 2, 2, 3]
    assert [one and one.created_version for one in folded] == [1, 1, 1, 1, 5, 5, 7]
    assert folded[-1] is not None
    assert not folded[-1].retained
