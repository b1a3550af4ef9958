"""Every index of dead letters keeps the port's promises."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from tenantry.database.pool import Database
from tenantry.messages.dead_letters import (
    LARGEST_BODY,
    REPLAY_HEADER,
    DeadLetterIndex,
    Judged,
    Outcome,
    fingerprint,
)
from tenantry.messages.dead_letters_memory import InMemoryDeadLetterIndex
from tenantry.messages.dead_letters_postgres import PostgresDeadLetterIndex
from tenantry.messages.port import Incoming


@pytest.fixture(params=["memory", "postgres"])
def index(request: pytest.FixtureRequest) -> DeadLetterIndex:
    if request.param == "memory":
        return InMemoryDeadLetterIndex()
    database: Database = request.getfixturevalue("database")
    return PostgresDeadLetterIndex(database)


def letter(message_id: str | None = "m", body: bytes = b"bad", **fields: Any) -> Judged:
    given: dict[str, Any] = {
        "topic": "logs",
        "partition": 2,
        "content_type": "application/json",
        "headers": None,
        "published_at_ms": None,
    } | fields
    return Judged(Incoming(id=message_id, body=body, **given), "not_json", "no JSON", 1)


def listed(index: DeadLetterIndex, **options: Any) -> list[str | None]:
    return [one.message_id for one in index.page("acme", **options)[0]]


def test_a_letter_is_listed_as_it_is(index: DeadLetterIndex) -> None:
    judged = letter(
        "m-1", b"\x00\xff", headers={"n": 1}, published_at_ms=1_700_000_000_123
    )._replace(attempts=4)
    (letter_id,) = index.keep("acme", [judged])
    ((found,), more) = index.page("acme")
    assert not more
    assert found.id == letter_id
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
    first = index.keep("acme", [letter("a"), letter("b"), letter("a")])
    assert first[0] == first[2] != first[1]
    assert index.keep("acme", [letter("b"), letter("a")]) == [first[1], first[0]]
    assert listed(index) == ["a", "b"]


def test_letters_differ_by_place_id_bytes_and_replay(index: DeadLetterIndex) -> None:
    different = [
        letter(),
        letter(topic="events"),
        letter(partition=1),
        letter("n"),
        letter(None),
        letter(""),
        letter(body=b"worse"),
        letter(headers={REPLAY_HEADER: "x"}),
    ]
    assert len(set(index.keep("acme", different))) == len(different)
    assert len({fingerprint(one.message) for one in different}) == len(different)


def test_pages_follow_each_other(index: DeadLetterIndex) -> None:
    index.keep("acme", [letter(str(number)) for number in range(7)])
    seen: list[str | None] = []
    after, more = 0, True
    while more:
        page, more = index.page("acme", after=after, limit=3)
        seen += [one.message_id for one in page]
        after = page[-1].position
    assert seen == [str(number) for number in range(7)]


def test_what_the_database_can_not_hold_is_listed_nevertheless(index: DeadLetterIndex) -> None:
    odd = Judged(
        Incoming("a\0b", "default", 0, b"\0", "te\0xt", {"k": "v\0", "b": b"\xff"}, 2**62),
        "nul",
        "a \0 in it",
        1,
    )
    if isinstance(index, InMemoryDeadLetterIndex):
        odd = odd._replace(message=odd.message._replace(published_at_ms=None))
    (letter_id,) = index.keep("acme", [odd])
    assert index.page("acme")[0][0].id == letter_id


def test_a_large_body_is_not_listed_but_its_size_is(index: DeadLetterIndex) -> None:
    index.keep("acme", [letter(body=b"x" * (LARGEST_BODY + 1))])
    ((found,), _) = index.page("acme")
    assert (found.body, found.size) == (None, LARGEST_BODY + 1)


def test_letters_are_found_by_either_id(index: DeadLetterIndex) -> None:
    one, two, three = index.keep("acme", [letter("a"), letter("b"), letter("b", b"other")])
    assert index.named("acme", ["b", "nothing", "\0"]) == {two, three}
    assert index.named("acme", [str(one)]) == {one}
    assert index.named("other", ["a"]) == set()


def test_a_settled_letter_is_listed_no_more_and_known_until_it_is_forgotten(
    index: DeadLetterIndex,
) -> None:
    one, two = index.keep("acme", [letter("a"), letter("b")])
    keys = [fingerprint(letter("a").message), fingerprint(letter("b").message)]
    index.settle("acme", [one], Outcome.DISCARDED)
    assert listed(index) == ["b"]
    assert index.named("acme", ["a"]) == set()
    known = index.find("acme", [*keys, b"unknown"], walk=uuid4())
    assert [known[key] for key in keys] == [(one, True), (two, False)]
    assert len(known) == 2
    index.forget("acme", [one, two])
    assert set(index.find("acme", keys, walk=uuid4())) == {keys[1]}


def test_a_message_that_comes_again_after_it_was_settled_is_another_letter(
    index: DeadLetterIndex,
) -> None:
    (one,) = index.keep("acme", [letter("a")])
    index.settle("acme", [one], Outcome.DISCARDED)
    (two,) = index.keep("acme", [letter("a")])
    assert one != two
    assert listed(index) == ["a"]
    index.forget("acme", [one])
    assert listed(index) == ["a"]


def test_letters_whose_message_is_not_in_the_queue_any_more_are_forgotten(
    index: DeadLetterIndex,
) -> None:
    ids = index.keep("acme", [letter("seen"), letter("gone"), letter("settled and gone")])
    index.settle("acme", [ids[2]], Outcome.REPLAYED)
    walk: UUID = uuid4()
    index.find("acme", [fingerprint(letter("seen").message)], walk=walk)
    assert index.forget_missing("acme", walk=walk, older_than=60) == 0  # too young
    assert index.forget_missing("acme", walk=walk, older_than=-1) == 1
    assert listed(index) == ["seen"]


def test_a_dropped_tenants_letters_are_gone_and_its_neighbours_stay(
    index: DeadLetterIndex,
) -> None:
    index.keep("acme", [letter()])
    index.keep("acme-2", [letter()])
    index.drop("acme")
    assert index.page("acme") == ([], False)
    assert len(index.page("acme-2")[0]) == 1


def test_a_page_of_large_letters_is_cut_and_goes_on(database: Database) -> None:
    index = PostgresDeadLetterIndex(database)
    bodies = [bytes([65 + number]) * LARGEST_BODY for number in range(12)]
    index.keep("acme", [letter(str(number), body) for number, body in enumerate(bodies)])
    page, more = index.page("acme", limit=50)
    assert (len(page), more) == (8, True)
    rest, more = index.page("acme", after=page[-1].position, limit=50)
    assert (len(rest), more) == (4, False)
