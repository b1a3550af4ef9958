"""Every index of dead letters keeps the port's promises."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenantry.database.pool import Database
from tenantry.dead_letters import postgres
from tenantry.dead_letters.port import (
    LARGEST_BODY,
    DeadLetterIndex,
    Intent,
    QueueMessage,
    RejectedMessage,
    Selection,
    Work,
    fingerprint,
)
from tenantry.dead_letters.postgres import PostgresDeadLetterIndex
from tenantry.messages.headers import REPLAY_HEADER, REPLAYS_HEADER
from tenantry.messages.port import Incoming
from tests import services_postgres
from tests.depth import examples
from tests.fakes.dead_letters import InMemoryDeadLetterIndex
from tests.waiting import DEADLINE, eventually


@pytest.fixture(params=["memory", "postgres"])
def index(request: pytest.FixtureRequest) -> DeadLetterIndex:
    if request.param == "memory":
        return InMemoryDeadLetterIndex()
    database: Database = request.getfixturevalue("database")
    return PostgresDeadLetterIndex(database)


def letter(message_id: str | None = "m", body: bytes = b"bad", **fields: Any) -> RejectedMessage:
    given: dict[str, Any] = {
        "topic": "logs",
        "partition": 2,
        "content_type": "application/json",
        "headers": None,
        "published_at_ms": None,
    } | fields
    return RejectedMessage(Incoming(id=message_id, body=body, **given), "not_json", "no JSON", 1)


DIED_AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def found(judged: RejectedMessage, second: int = 0) -> QueueMessage:
    return QueueMessage(judged, DIED_AT.replace(second=second))


def keep(index: DeadLetterIndex, *letters: RejectedMessage) -> list[UUID]:
    return [one.id for one in index.add("acme", letters)]


def work(index: DeadLetterIndex, letter_id: UUID, what: Work) -> None:
    index.begin("acme", [letter_id], Intent(uuid4(), what))
    index.settle("acme", [letter_id])


def replayed(judged: RejectedMessage, letter_id: UUID, number: int) -> RejectedMessage:
    headers = {REPLAY_HEADER: str(letter_id), REPLAYS_HEADER: number}
    return judged._replace(message=judged.message._replace(headers=headers))


def listed(index: DeadLetterIndex, **options: Any) -> list[str | None]:
    return [one.message_id for one in index.page("acme", **options)[0]]


def test_a_letter_is_listed_as_it_is(index: DeadLetterIndex) -> None:
    judged = letter(
        "m-1", b"\x00\xff", headers={"n": 1}, published_at_ms=1_700_000_000_123
    )._replace(attempts=4)
    (letter_id,) = keep(index, judged)
    ((found,), more) = index.page("acme")
    assert not more
    assert (found.id, found.replays) == (letter_id, 0)
    assert (found.tenant_id, found.message_id, found.topic, found.partition) == (
        "acme", "m-1", "logs", 2,
    )  # fmt: skip
    assert (found.reason, found.error, found.attempts, found.size) == ("not_json", "no JSON", 4, 2)
    assert (found.body, found.content_type) == (b"\x00\xff", "application/json")
    assert found.headers == '{"n":1}'
    assert found.published_at is not None
    assert found.published_at.timestamp() == pytest.approx(1_700_000_000.123)
    assert index.page("other") == ([], False)


def test_a_letter_that_comes_again_is_listed_once(index: DeadLetterIndex) -> None:
    first = index.add("acme", [letter("a"), letter("b"), letter("a")])
    assert [one.fresh for one in first] == [True, True, False]
    assert first[0].id == first[2].id != first[1].id
    again = index.add("acme", [letter("b"), letter("a")])
    assert again == [first[1]._replace(fresh=False), first[0]._replace(fresh=False)]
    assert listed(index) == ["a", "b"]


def test_letters_differ_by_place_id_and_bytes(index: DeadLetterIndex) -> None:
    different = [
        letter(),
        letter(topic="events"),
        letter(partition=1),
        letter("n"),
        letter(None),
        letter(""),
        letter(body=b"worse"),
    ]
    assert len({one.id for one in index.add("acme", different)}) == len(different)
    assert len({fingerprint(one.message) for one in different}) == len(different)


def test_messages_without_an_id_are_a_letter_each(index: DeadLetterIndex) -> None:
    three = index.add("acme", [letter(None)] * 3)
    assert len({one.id for one in three}) == 3
    # The reject was lost, so they are delivered again: the same three letters.
    again = index.add("acme", [letter(None)._replace(again=True)] * 3)
    assert again == [one._replace(fresh=False) for one in three]
    assert len(index.page("acme")[0]) == 3


def test_a_walk_counts_messages_without_an_id(index: DeadLetterIndex) -> None:
    kept = index.add("acme", [letter(None)] * 2)
    walk = uuid4()
    met = index.lookup("acme", [found(letter(None))] * 2, browse=walk)
    assert {one.id for one in met} == {one.id for one in kept}
    (third,) = index.lookup("acme", [found(letter(None))], browse=walk)
    assert not third.recorded
    assert len(index.page("acme")[0]) == 3
    again = index.lookup("acme", [found(letter(None))] * 3, browse=uuid4())
    assert {one.id for one in again} == {*(one.id for one in kept), third.id}


def test_pages_follow_each_other(index: DeadLetterIndex) -> None:
    index.add("acme", [letter(str(number)) for number in range(7)])
    seen: list[str | None] = []
    after, more = 0, True
    while more:
        page, more = index.page("acme", after=after, limit=3)
        seen += [one.message_id for one in page]
        after = page[-1].position
    assert seen == [str(number) for number in range(7)]


def test_what_the_database_can_not_hold_is_listed_nevertheless(index: DeadLetterIndex) -> None:
    odd = RejectedMessage(
        Incoming("a\0b", "default", 0, b"\0", "te\0xt", {"k": "v\0", "b": b"\xff"}, 2**62),
        "nul",
        "a \0 in it",
        1,
    )
    if isinstance(index, InMemoryDeadLetterIndex):
        odd = odd._replace(message=odd.message._replace(published_at_ms=None))
    (letter_id,) = keep(index, odd)
    assert index.page("acme")[0][0].id == letter_id


def test_a_large_body_is_not_listed_but_its_size_is(index: DeadLetterIndex) -> None:
    index.add("acme", [letter(body=b"x" * (LARGEST_BODY + 1))])
    ((found,), _) = index.page("acme")
    assert (found.body, found.size) == (None, LARGEST_BODY + 1)


def test_letters_are_found_by_either_id(index: DeadLetterIndex) -> None:
    one, two, three = keep(index, letter("a"), letter("b"), letter("b", b"other"))
    assert index.named("acme", ["b", "nothing", "\0"]) == {two, three}
    assert index.named("acme", [str(one)]) == {one}
    assert index.named("other", ["a"]) == set()


def test_a_selection_is_all_of_its_conditions(index: DeadLetterIndex) -> None:
    keep(index, letter("a"))
    keep(index, letter("b", topic="events"))
    keep(index, letter("c")._replace(reason="nul"))
    (a, b, c) = index.page("acme")[0]
    assert listed(index, which=Selection(topic="logs")) == ["a", "c"]
    assert listed(index, which=Selection(topic="logs", reason="nul")) == ["c"]
    assert listed(index, which=Selection(since=b.dead_lettered_at)) == ["b", "c"]
    assert listed(index, which=Selection(until=b.dead_lettered_at)) == ["a"]
    assert listed(index, which=Selection(names=frozenset({"b", str(c.id), "x"}))) == ["b", "c"]
    preview = index.preview("acme", Selection(topic="logs"), most_replays=0)
    assert (preview.count, preview.worn) == (2, 2)
    assert preview.places == {("logs", 2): 2}
    assert preview.as_of >= a.dead_lettered_at
    assert index.preview("acme", Selection(topic="none"), most_replays=9).count == 0
    assert index.counts(["acme", "other"])["acme"] == 3


def test_a_replay_that_fails_is_the_letter_it_was(index: DeadLetterIndex) -> None:
    (one,) = keep(index, letter("a"))
    work(index, one, Work.REPLAY)
    assert listed(index) == []
    again = replayed(letter("a"), one, 1)
    (kept,) = index.add("acme", [again])
    assert (kept.id, kept.fresh) == (one, True)
    assert kept.event_id != one
    assert index.add("acme", [again]) == [kept._replace(fresh=False)]
    ((shown,), _) = index.page("acme")
    assert (shown.id, shown.replays, shown.message_id) == (one, 1, "a")
    # If the broker has forgotten the original's ack, the original is only to be removed.
    original, later = index.lookup("acme", [found(letter("a")), found(again)], browse=uuid4())
    assert (original.id, original.listed) == (one, False)
    assert (later.id, later.listed) == (one, True)


def test_a_replay_of_a_message_without_an_id_is_the_letter_it_was(index: DeadLetterIndex) -> None:
    (one, other) = keep(index, letter(None), letter(None))
    work(index, one, Work.REPLAY)
    again = replayed(letter(str(one)), one, 1)
    (kept,) = index.add("acme", [again])
    assert (kept.id, kept.fresh) == (one, True)
    assert {shown.id for shown in index.page("acme")[0]} == {one, other}


def test_a_late_copy_of_a_replay_changes_nothing(index: DeadLetterIndex) -> None:
    (one,) = keep(index, letter("a"))
    work(index, one, Work.REPLAY)
    copy = replayed(letter("a"), one, 1)
    index.add("acme", [copy])
    work(index, one, Work.DISCARD)
    (late,) = index.add("acme", [copy])
    assert (late.id, late.fresh) == (one, False)
    assert listed(index) == []
    (met,) = index.lookup("acme", [found(copy)], browse=uuid4())
    assert not met.listed


def test_what_was_intended_is_known_until_it_is_settled(index: DeadLetterIndex) -> None:
    one, two = keep(index, letter("a"), letter("b"))
    intent = Intent(uuid4(), Work.REPLAY)
    index.begin("acme", [one, two], intent)
    assert index.unfinished() == {"acme"}
    assert index.intended("acme", intent.id) == sorted([one, two])
    index.withdraw("acme", [two])
    met = index.lookup("acme", [found(letter("a")), found(letter("b"))], browse=uuid4())
    assert [(one.intent, one.replays, one.failed_again) for one in met] == [
        (intent, 1, False),
        (None, 0, False),
    ]
    index.settle("acme", [one])
    assert index.unfinished() == set()
    assert index.intended("acme", intent.id) == [one]
    assert listed(index) == ["b"]


def test_a_replay_that_failed_before_it_was_settled_stays_listed(index: DeadLetterIndex) -> None:
    (one,) = keep(index, letter("a"))
    index.begin("acme", [one], Intent(uuid4(), Work.REPLAY))
    index.add("acme", [replayed(letter("a"), one, 1)])
    (met,) = index.lookup("acme", [found(letter("a"))], browse=uuid4())
    assert (met.failed_again, met.listed) == (True, False)
    index.settle("acme", [one])
    assert listed(index) == ["a"]
    assert index.unfinished() == set()


def test_a_settled_letter_is_listed_no_more_and_known_until_it_is_swept(
    index: DeadLetterIndex,
) -> None:
    one, _ = keep(index, letter("a"), letter("b"))
    both = [found(letter("a")), found(letter("b"))]
    index.lookup("acme", both, browse=uuid4())
    work(index, one, Work.DISCARD)
    assert listed(index) == ["b"]
    assert index.named("acme", ["a"]) == set()
    assert [met.listed for met in index.lookup("acme", both, browse=uuid4())] == [False, True]
    assert index.sweep(older_than=-1) == 0  # the letter is not known to have left the queue
    index.gone("acme", [one])
    assert index.sweep(older_than=60) == 0
    assert index.sweep(older_than=-1) == 1


def test_a_message_that_comes_again_after_it_was_settled_is_another_letter(
    index: DeadLetterIndex,
) -> None:
    (one,) = keep(index, letter("a"))
    work(index, one, Work.DISCARD)
    (two,) = index.add("acme", [letter("a")])
    assert (two.fresh, two.event_id) == (True, two.id)
    assert one != two.id
    assert listed(index) == ["a"]
    index.gone("acme", [one])
    assert index.sweep(older_than=-1) == 0
    assert listed(index) == ["a"]


def test_what_dies_again_at_the_broker_after_it_was_settled_is_another_letter(
    index: DeadLetterIndex,
) -> None:
    (first,) = index.lookup("acme", [found(letter("a"))], browse=uuid4())
    work(index, first.id, Work.DISCARD)
    (same,) = index.lookup("acme", [found(letter("a"))], browse=uuid4())
    assert (same.id, same.listed) == (first.id, False)
    (later,) = index.lookup("acme", [found(letter("a"), second=1)], browse=uuid4())
    assert later.listed
    assert later.id != first.id


def test_what_only_the_broker_knew_is_listed_and_unfinished_until_the_journal_tells_of_it(
    index: DeadLetterIndex,
) -> None:
    (met,) = index.lookup("acme", [found(letter("a"))], browse=uuid4())
    assert not met.recorded
    assert index.unfinished() == {"acme"}
    assert index.page("acme")[0][0].dead_lettered_at == DIED_AT
    index.recorded("acme", [met.id])
    (met,) = index.lookup("acme", [found(letter("a"))], browse=uuid4())
    assert met.recorded
    assert index.unfinished() == set()


def test_letters_whose_message_is_not_in_the_queue_any_more_are_forgotten(
    index: DeadLetterIndex,
) -> None:
    ids = keep(index, letter("seen"), letter("gone"), letter("settled and gone"))
    work(index, ids[2], Work.DISCARD)
    walk: UUID = uuid4()
    index.lookup("acme", [found(letter("seen"))], browse=walk)
    assert index.forget_missing("acme", browse=walk, older_than=60) == 0  # too young
    assert index.forget_missing("acme", browse=walk, older_than=-1) == 1
    assert listed(index) == ["seen"]
    assert index.sweep(older_than=-1) == 1


def test_totals_count_each_death_and_what_became_of_it_once(database: Database) -> None:
    index = PostgresDeadLetterIndex(database)
    with database.connection() as connection:
        connection.execute("INSERT INTO tenantry.tenant_counters (tenant_id) VALUES ('acme')")
    (one, two, _) = keep(index, letter("a"), letter("b"), letter("c"))
    keep(index, letter("a"))
    work(index, one, Work.REPLAY)
    keep(index, replayed(letter("a"), one, 1), replayed(letter("a"), one, 1))
    work(index, two, Work.DISCARD)
    work(index, two, Work.DISCARD)
    index.begin("acme", [one], Intent(uuid4(), Work.REPLAY))
    keep(index, replayed(letter("a"), one, 2))
    index.settle("acme", [one])
    with database.connection() as connection:
        totals = connection.execute(
            "SELECT dead_lettered, letters_kept, letters_replayed, letters_discarded"
            " FROM tenantry.tenant_counters"
        ).fetchone()
    assert totals == (5, 5, 2, 1)
    assert index.counts(["acme"]) == {"acme": 2}


def test_a_page_of_large_letters_is_cut_and_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = examples(LARGEST_BODY // 16, LARGEST_BODY)
    monkeypatch.setattr(postgres, "PAGE_BYTES", 8 * size)
    index = PostgresDeadLetterIndex(database)
    bodies = [bytes([65 + number]) * size for number in range(12)]
    index.add("acme", [letter(str(number), body) for number, body in enumerate(bodies)])
    page, more = index.page("acme", limit=50)
    assert (len(page), more) == (8, True)
    rest, more = index.page("acme", after=page[-1].position, limit=50)
    assert (len(rest), more) == (4, False)


def test_of_very_many_that_are_the_same_few_are_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million copies of one bad message once made each batch read a million rows."""
    index = PostgresDeadLetterIndex(database)
    (first,) = index.add("acme", [letter(None)])
    browse = uuid4()
    with database.connection() as connection:
        connection.execute(
            MANY_COPIES, {"fingerprint": fingerprint(letter(None).message), "browse": browse}
        )
    seen: list[int] = []

    class Counting(postgres.Matching):
        def __init__(self, rows: Any, **given: Any) -> None:
            rows = list(rows)
            seen.append(len(rows))
            super().__init__(rows, **given)

    monkeypatch.setattr(postgres, "Matching", Counting)
    again = [letter(None)._replace(again=True)] * 20
    kept = index.add("acme", [*again, letter(None)])
    assert [one.fresh for one in kept] == [False] * 20 + [True]
    assert kept[0].id == first.id
    died = [found(letter(None), second) for second in (0, 1, 1, 2, 3)] * 4
    known = index.lookup("acme", died, browse=uuid4())
    assert len({one.id for one in known}) == len(died)
    index.lookup("acme", [found(letter(None), 1)] * 5, browse=browse)
    assert max(seen) <= 10 * len(died) + 10


def test_a_tenant_whose_dead_letters_wait_leaves_others_the_connections(
    database: Database,
) -> None:
    few = database.beside(pool_size=2, statement_timeout=DEADLINE, idle_timeout=DEADLINE)
    few.open()
    index = PostgresDeadLetterIndex(few)
    try:
        with ThreadPoolExecutor(6) as pool:
            with database.transaction() as holding:
                holding.execute("SELECT tenantry.hold('dead_letters.acme')")
                added = [pool.submit(index.add, "acme", [letter(str(n))]) for n in range(6)]
                eventually(lambda: _waiting(database) > 0)
                for number in range(20):
                    assert len(index.add("beta", [letter(str(number))])) == 1
                    assert _waiting(database) == 1
            assert all(one.result(DEADLINE) for one in added)
    finally:
        few.close()


def _waiting(database: Database) -> int:
    with database.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ).fetchone()
    return row[0] if row else 0


MANY_COPIES = """
INSERT INTO tenantry.dead_letters
    (tenant_id, id, fingerprint, copy, message_id, topic, partition, reason, error, attempts, size,
     died_at, seen_in, settled, outcome, intent, work, replays, failed)
SELECT 'acme', gen_random_uuid(), %(fingerprint)s, n, NULL, 'logs', 2, 'not_json', 'no', 1, 1,
       CASE WHEN n %% 5 < 4 THEN '2026-01-31 12:00:00Z'::timestamptz + n %% 5 * interval '1 s' END,
       CASE WHEN n %% 7 = 0 THEN %(browse)s::uuid END, settled,
       CASE WHEN settled THEN 'replayed' END,
       CASE WHEN settled OR n %% 11 = 0 THEN gen_random_uuid() END,
       CASE WHEN settled OR n %% 11 = 0 THEN 'replay' END, CASE WHEN settled THEN 1 ELSE 0 END, 0
FROM (SELECT n, n %% 3 = 0 AS settled FROM generate_series(1, 5000) AS n) AS numbers
"""


def test_replays_that_fail_together_are_listed_in_their_order(index: DeadLetterIndex) -> None:
    ids = [keep(index, letter(None))[0] for _ in range(8)]
    index.begin("acme", ids, Intent(uuid4(), Work.REPLAY))
    index.settle("acme", ids)
    index.add("acme", [replayed(letter(str(one)), one, 1) for one in reversed(ids)])
    assert [one.id for one in index.page("acme")[0]] == ids[::-1]


@settings(max_examples=examples(15, 200))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.booleans(), min_size=1, max_size=4)),
            st.tuples(
                st.just("look"),
                st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=5),
            ),
            st.tuples(st.just("go on"), st.lists(st.sampled_from([0, 1]), min_size=1, max_size=3)),
            st.tuples(st.just("begin"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
            st.tuples(st.just("settle"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
            st.tuples(st.just("fail"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_of_messages_without_an_id_the_database_chooses_as_is_chosen_among_all(
    one_database: Database, steps: list[tuple[str, list[Any]]]
) -> None:
    with one_database.connection() as connection:
        connection.execute("DELETE FROM tenantry.dead_letters")
    told = [_told(index, steps) for index in (InMemoryDeadLetterIndex(), _postgres(one_database))]
    assert told[0] == told[1]


def _told(index: DeadLetterIndex, steps: list[tuple[str, list[Any]]]) -> list[object]:
    """Return the index's answer to each step, with dead letters numbered as they become known."""
    numbers: dict[UUID, int] = {}
    told: list[object] = []
    browse = uuid4()

    def number(one: UUID) -> int:
        return numbers.setdefault(one, len(numbers))

    for what, given_values in steps:
        if what == "add":
            judged = [letter(None)._replace(again=again) for again in given_values]
            told.append([(number(one.id), one.fresh) for one in index.add("acme", judged)])
            continue
        if what in {"look", "go on"}:
            browse = browse if what == "go on" else uuid4()
            lies = [
                QueueMessage(
                    letter(None), None if second is None else found(letter(None), second)[1]
                )
                for second in given_values
            ]
            told.append(
                [
                    (number(one.id), one.listed, one.intent is None, one.replays)
                    for one in index.lookup("acme", lies, browse=browse)
                ]
            )
            continue
        ids = [one for one, at in numbers.items() if at in given_values]
        if what == "begin":
            index.begin("acme", ids, Intent(uuid4(), Work.REPLAY))
        elif what == "settle":
            index.settle("acme", ids)
        else:
            failed = [replayed(letter(str(one)), one, 1) for one in ids]
            told.append([(number(one.id), one.fresh) for one in index.add("acme", failed)])
    listed_now, _ = index.page("acme", limit=1000)
    told.append([(number(one.id), one.replays) for one in listed_now])
    return told


def _postgres(database: Database) -> DeadLetterIndex:
    return PostgresDeadLetterIndex(database)


@pytest.fixture(scope="module")
def one_database() -> Iterator[Database]:
    with services_postgres.database(services_postgres.admin_url()) as url:
        opened = Database(url)
        opened.open(DEADLINE)
        yield opened
        opened.close()
