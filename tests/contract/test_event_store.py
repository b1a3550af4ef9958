"""What every event store promises, held against the one in memory and the one on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tenantry.domain import names
from tenantry.domain.events import (
    Event,
    MessageDeadLettered,
    TenantCreated,
    TenantPaused,
    TenantProvisioned,
    TenantResumed,
    WorkersResized,
)
from tenantry.journal.port import (
    ANY,
    EventStore,
    Expected,
    Metadata,
    RecordedEvent,
    Snapshot,
    VersionConflictError,
)
from tenantry.journal.postgres import PostgresEventStore
from tests.fakes.stores import InMemoryEventStore
from tests.waiting import DEADLINE

METADATA = Metadata(actor="uid=0", correlation_id="c0ffee", causation_id="cause")


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[EventStore]:
    if request.param == "memory":
        yield InMemoryEventStore()
    else:
        yield PostgresEventStore(request.getfixturevalue("database"))


def created(tenant_id: str = "acme") -> TenantCreated:
    return TenantCreated(
        tenant_id=tenant_id, name="Acme Ltd", workers=3, topics=("events", "logs"), partitions=2
    )


def resized(workers: int, tenant_id: str = "acme") -> WorkersResized:
    return WorkersResized(tenant_id=tenant_id, previous=1, workers=workers)


def dead(tenant_id: str = "acme") -> MessageDeadLettered:
    return MessageDeadLettered(
        tenant_id=tenant_id,
        message_id=None,
        topic="events",
        partition=0,
        reason="not-json",
        error="Expecting value",
        first_error="Expecting value",
        attempts=1,
        size=12,
    )


def append(
    store: EventStore,
    stream: str,
    *events: Event,
    expected: int | Expected = ANY,
    ids: Sequence[UUID] | None = None,
) -> list[RecordedEvent]:
    return store.append(stream, events, expected=expected, metadata=METADATA, ids=ids)


def test_a_new_stream_is_begun_by_expecting_version_0(store: EventStore) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    recorded = append(store, "tenant-acme", created(), expected=0)
    (one,) = recorded
    assert (one.position, one.version, one.stream) == (1, 1, "tenant-acme")
    assert one.event == created()
    assert one.metadata == METADATA
    assert before < one.recorded_at < datetime.now(UTC) + timedelta(minutes=1)
    assert one.recorded_at.utcoffset() == timedelta(0)


def test_what_is_read_is_what_was_recorded(store: EventStore) -> None:
    recorded = append(store, "tenant-acme", created(), TenantProvisioned(tenant_id="acme"))
    assert store.read_stream("tenant-acme") == recorded
    assert store.read_all() == recorded
    assert [one.version for one in recorded] == [1, 2]
    assert [one.position for one in recorded] == [1, 2]


def test_a_second_append_at_the_same_version_is_refused(store: EventStore) -> None:
    append(store, "tenant-acme", created(), expected=0)
    append(store, "tenant-acme", resized(2), expected=1)
    with pytest.raises(VersionConflictError) as caught:
        append(store, "tenant-acme", resized(3), expected=1)
    assert (caught.value.stream, caught.value.expected, caught.value.actual) == (
        "tenant-acme",
        1,
        2,
    )
    assert [one.event for one in store.read_stream("tenant-acme")] == [created(), resized(2)]


@pytest.mark.parametrize("expected", [1, 7])
def test_an_append_ahead_of_the_stream_is_refused(store: EventStore, expected: int) -> None:
    with pytest.raises(VersionConflictError):
        append(store, "tenant-acme", created(), expected=expected)
    assert store.read_all() == []


def test_a_refused_append_leaves_no_gap_in_the_positions(store: EventStore) -> None:
    append(store, "tenant-a", created("a"))
    with pytest.raises(VersionConflictError):
        append(store, "tenant-a", resized(2, "a"), resized(3, "a"), expected=0)
    (one,) = append(store, "tenant-b", created("b"))
    assert one.position == 2


def test_any_version_will_do_if_asked_for(store: EventStore) -> None:
    for workers in range(1, 4):
        (one,) = append(store, "tenant-acme", resized(workers), expected=ANY)
        assert one.version == workers


def test_appending_nothing_does_nothing(store: EventStore) -> None:
    assert append(store, "tenant-acme", expected=5) == []
    assert store.read_all() == []


def test_streams_have_versions_of_their_own_and_share_the_positions(store: EventStore) -> None:
    append(store, "tenant-a", created("a"))
    append(store, "tenant-b", created("b"))
    append(store, "tenant-a", resized(2, "a"))
    assert [(one.stream, one.version, one.position) for one in store.read_all()] == [
        ("tenant-a", 1, 1),
        ("tenant-b", 1, 2),
        ("tenant-a", 2, 3),
    ]


def test_a_repeated_append_with_the_same_ids_is_harmless(store: EventStore) -> None:
    ids = [uuid4(), uuid4()]
    first = append(store, "tenant-acme", created(), resized(2), expected=0, ids=ids)
    assert [one.id for one in first] == ids
    assert append(store, "tenant-acme", created(), resized(2), expected=0, ids=ids) == []
    assert append(store, "tenant-acme", created(), resized(2), ids=ids) == []
    assert store.read_stream("tenant-acme") == first


def test_only_the_events_with_new_ids_are_recorded(store: EventStore) -> None:
    known, new = uuid4(), uuid4()
    append(store, "dead_letters-acme", dead(), ids=[known])
    recorded = append(store, "dead_letters-acme", dead(), dead(), dead(), ids=[new, known, new])
    assert [(one.id, one.version) for one in recorded] == [(new, 2)]


def test_an_id_known_from_another_stream_is_passed_over(store: EventStore) -> None:
    known = uuid4()
    append(store, "tenant-a", created("a"), ids=[known])
    assert append(store, "tenant-b", created("b"), ids=[known]) == []
    assert store.read_stream("tenant-b") == []


def test_new_events_beside_known_ones_still_need_the_expected_version(store: EventStore) -> None:
    known = uuid4()
    append(store, "tenant-acme", created(), expected=0, ids=[known])
    with pytest.raises(VersionConflictError):
        append(store, "tenant-acme", created(), resized(2), expected=0, ids=[known, uuid4()])


def test_as_many_ids_as_events_are_wanted(store: EventStore) -> None:
    with pytest.raises(ValueError):
        append(store, "tenant-acme", created(), resized(2), ids=[uuid4()])
    assert store.read_all() == []


def test_text_that_json_cannot_hold_is_recorded_with_a_stand_in(store: EventStore) -> None:
    nasty = TenantCreated(
        tenant_id="acme", name="a\0b\ud800c\\u0000 ☃", workers=1, topics=(), partitions=1
    )
    recorded = store.append(
        "tenant-acme", [nasty], expected=0, metadata=Metadata(actor="a\0", correlation_id="x")
    )
    assert store.read_stream("tenant-acme") == recorded
    assert recorded[0].event.name == "a\ufffdb\ufffdc\\u0000 ☃"  # type: ignore[union-attr]
    assert recorded[0].metadata.actor == "a\ufffd"


def test_times_never_go_back(store: EventStore) -> None:
    for workers in range(1, 20):
        append(store, "tenant-acme", resized(workers))
    times = [one.recorded_at for one in store.read_all()]
    assert times == sorted(times)


def test_an_unknown_stream_is_empty(store: EventStore) -> None:
    assert store.read_stream("tenant-nobody") == []


def test_a_stream_is_read_from_a_version_on_and_in_parts(store: EventStore) -> None:
    append(store, "tenant-other", created("other"))
    recorded = append(store, "tenant-acme", *[resized(workers) for workers in range(1, 11)])
    assert store.read_stream("tenant-acme", after=7) == recorded[7:]
    assert store.read_stream("tenant-acme", after=2, limit=3) == recorded[2:5]
    assert store.read_stream("tenant-acme", after=10) == []


def test_all_is_read_in_order_of_position_from_a_position_on(store: EventStore) -> None:
    recorded = [
        one
        for number in range(10)
        for one in append(store, f"tenant-{number % 3}", created(str(number % 3)))
    ]
    assert store.read_all(after=4, limit=3) == recorded[4:7]
    assert store.read_all(after=10) == []


def test_only_the_wanted_categories_are_read(store: EventStore) -> None:
    append(store, "tenant-a", created("a"))
    append(store, "dead_letters-a", dead("a"))
    append(store, "tenant-b-c", created("b-c"))
    append(store, "ops-1", resized(2))
    streams = [one.stream for one in store.read_all(categories=["tenant"])]
    assert streams == ["tenant-a", "tenant-b-c"]
    both = store.read_all(categories=["dead_letters", "tenant", "tenant"])
    assert [one.position for one in both] == [1, 2, 3]
    assert [one.position for one in store.read_all(categories=["tenant"], limit=1)] == [1]
    assert store.read_all(categories=[]) == []


def test_a_tenant_is_read_with_its_dead_letters_and_no_namesake(store: EventStore) -> None:
    append(store, names.journal_stream("acme"), created())
    append(store, names.journal_stream("acme-2"), created("acme-2"))
    append(store, names.dead_letter_journal_stream("acme"), dead(), dead())
    append(store, names.journal_stream("acme"), resized(5))
    assert [one.position for one in store.read_tenant("acme")] == [1, 3, 4, 5]
    assert [one.position for one in store.read_tenant("acme", after=1, limit=2)] == [3, 4]
    assert store.read_tenant("nobody") == []


def test_a_snapshot_is_given_back_and_replaced_by_newer_ones_only(store: EventStore) -> None:
    def snapshot(version: int, **data: object) -> Snapshot:
        return Snapshot(stream="tenant-acme", version=version, schema_version=1, data=data)

    assert store.load_snapshot("tenant-acme") is None
    store.save_snapshot(snapshot(100, name="ä", topics=["a"]))
    assert store.load_snapshot("tenant-acme") == snapshot(100, name="ä", topics=["a"])
    store.save_snapshot(snapshot(200, name="b"))
    store.save_snapshot(snapshot(100, name="late"))
    assert store.load_snapshot("tenant-acme") == snapshot(200, name="b")
    assert store.load_snapshot("tenant-other") is None


def test_waiting_ends_at_once_where_there_is_something_already(store: EventStore) -> None:
    append(store, "tenant-acme", created())
    assert store.wait_for_events(0, timeout=3600) is True


def test_waiting_ends_when_its_time_is_up(store: EventStore) -> None:
    append(store, "tenant-acme", created())
    assert store.wait_for_events(1, timeout=0.05) is False
    assert store.wait_for_events(1, timeout=0) is False


def test_waiting_ends_when_something_is_appended(store: EventStore) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait_for_events, 0, 3600)
        append(store, "tenant-acme", created())
        assert waiting.result(timeout=DEADLINE) is True


def test_of_many_writers_exactly_one_wins_each_version(store: EventStore) -> None:
    rounds = 25
    writers = 8
    barrier = threading.Barrier(writers)

    def write(writer: int) -> list[int]:
        won = []
        for version in range(rounds):
            barrier.wait(timeout=DEADLINE)
            try:
                append(store, "tenant-acme", resized(writer + 1), expected=version)
            except VersionConflictError:
                continue
            won.append(version)
        return won

    with ThreadPoolExecutor(writers) as pool:
        wins = [one for won in pool.map(write, range(writers)) for one in won]
    assert sorted(wins) == list(range(rounds))
    assert [one.version for one in store.read_stream("tenant-acme")] == list(range(1, rounds + 1))


def test_a_reader_that_follows_misses_nothing_and_sees_nothing_twice(store: EventStore) -> None:
    writers = 6
    appends = 40
    done = threading.Event()

    def write(writer: int) -> None:
        for number in range(appends):
            count = 1 + (writer + number) % 3
            stream = f"tenant-{(writer * 7 + number) % 11}"
            append(store, stream, *[resized(1 + number)] * count)

    def follow(categories: Sequence[str] | None) -> list[int]:
        seen: list[int] = []
        position = 0
        while True:
            finished = done.is_set()
            batch = store.read_all(after=position, limit=17, categories=categories)
            seen += [one.position for one in batch]
            if batch:
                position = batch[-1].position
            elif finished:
                return seen
            else:
                store.wait_for_events(position, 0.05)

    with ThreadPoolExecutor(writers + 2) as pool:
        readers = [pool.submit(follow, None), pool.submit(follow, ["tenant"])]
        for writing in [pool.submit(write, writer) for writer in range(writers)]:
            writing.result(timeout=DEADLINE)
        done.set()
        total = sum(1 + (w + n) % 3 for w in range(writers) for n in range(appends))
        for reader in readers:
            assert reader.result(timeout=DEADLINE) == list(range(1, total + 1))


def test_versions_are_dense_however_many_write_at_once(store: EventStore) -> None:
    def write(writer: int) -> None:
        for _ in range(20):
            append(store, "tenant-acme", TenantPaused(tenant_id="acme"))
            append(store, f"tenant-{writer}", TenantResumed(tenant_id=str(writer)))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))
    recorded = store.read_stream("tenant-acme")
    assert [one.version for one in recorded] == list(range(1, 101))
    assert len(store.read_all(limit=1000)) == 200
