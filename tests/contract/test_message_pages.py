"""Pages of stored messages, as rows and as written JSON."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.api.schemas.messages import message_json
from tenantry.api.streams import PAGE, Chunk
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.messages import pages
from tenantry.messages.pages import PAGE_BYTES
from tenantry.messages.port import (
    Order,
    PartitionMissingError,
    StoredMessage,
    StoreResult,
    WrittenMessage,
    WrittenPage,
)
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.reader import PostgresPageReader
from tests.depth import examples
from tests.fakes.messages import TENANT, incoming


def test_pages_follow_one_another_in_both_directions(store: PostgresMessageStore) -> None:
    for start in range(0, 100, 20):
        store.store(
            TENANT,
            [incoming(str(n), topic="odd" if n % 2 else "even") for n in range(start, start + 20)],
        )
    for order in Order:
        for topic in (None, "odd"):
            seen: list[int] = []
            after = None
            while page := store.page(TENANT, topic=topic, after=after, limit=7, order=order):
                assert len(page) <= 7
                after = page[-1].position
                seen.extend(int(row.id) for row in page)
            expected = [n for n in range(100) if topic is None or n % 2]
            assert seen == (expected if order is Order.ASCENDING else expected[::-1])


def written(database: Database, tenant: str, *choices: dict[str, Any]) -> list[WrittenPage]:
    """Read pages as JSON, of two messages each unless a choice says otherwise."""

    async def read() -> list[WrittenPage]:
        reader = PostgresPageReader(LoopQueries(database))
        usual = {"topic": None, "after": None, "limit": 2, "order": Order.ASCENDING}
        return [await reader.written_page(tenant, **(usual | choice)) for choice in choices]

    return asyncio.run(read())


def shown(rows: Sequence[StoredMessage]) -> list[object]:
    return [json.loads(message_json(row)) for row in rows]


def test_a_written_page_shows_what_a_page_holds(
    database: Database, store: PostgresMessageStore
) -> None:
    awkward = 'a"b\\c\n\t\x7f\u2028é\U0001f600,\n'
    batch = [
        incoming(awkward, b'{"n": 12345678901234567890.10}', headers={awkward: awkward}),
        incoming("long", bytes(range(256)) * 3, awkward, topic=awkward),
        incoming("empty", b"", "text/plain", published=1),
        incoming("null", b"null", None),
    ]
    assert store.store(TENANT, batch).stored == 4
    choices: list[dict[str, Any]] = [
        {"topic": topic, "after": after, "order": order}
        for order in Order
        for topic in (None, "default", awkward, "none")
        for after in (None, 1, 3)
    ]
    for choice, page in zip(choices, written(database, TENANT, *choices), strict=True):
        rows = store.page(TENANT, **choice)
        assert json.loads(b"[%b]" % page.text) == shown(rows[:2])
        assert page.more == (len(rows) > 2)
        assert store.page(TENANT, **(choice | {"after": page.last})) == rows[2:]


def test_without_a_partition_no_page_is_written(database: Database) -> None:
    with pytest.raises(PartitionMissingError):
        written(database, "nobody", {})


def test_a_written_page_of_an_empty_partition_is_empty(
    database: Database, store: PostgresMessageStore
) -> None:
    pages = written(database, TENANT, {}, {"after": 7}, {"order": Order.DESCENDING})
    assert pages[:2] == [WrittenPage(b"", 0, more=False), WrittenPage(b"", 7, more=False)]
    assert (pages[2].text, pages[2].more) == (b"", False)


def test_written_pages_follow_one_another_in_both_directions(
    database: Database, store: PostgresMessageStore
) -> None:
    store.store(TENANT, [incoming(str(n), topic="odd" if n % 2 else "even") for n in range(20)])
    # Duplicates leave gaps: positions that no message has.
    store.store(TENANT, [incoming(str(n)) for n in (3, 20, 4, 21, 5)])
    for order in Order:
        for topic in (None, "odd"):
            seen: list[int] = []
            choice: dict[str, Any] = {"order": order, "topic": topic, "limit": 3}
            page = WrittenPage(b"", 0, more=True)
            while page.more:
                (page,) = written(database, TENANT, choice)
                seen += [int(one["id"]) for one in json.loads(b"[%b]" % page.text)]
                choice["after"] = page.last
            expected = [n for n in range(22) if topic is None or (n % 2 and n < 20)]
            assert seen == (expected if order is Order.ASCENDING else expected[::-1])


def test_a_page_of_very_large_messages_ends_early_and_leads_on(
    database: Database, store: PostgresMessageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Still larger than what PostgreSQL keeps in the row itself, and compresses.
    size = examples(256 * 1024, PAGE_BYTES)
    monkeypatch.setattr(pages, "PAGE_BYTES", size)
    monkeypatch.setattr(pages, "written", pages.written.__wrapped__)
    large = random.Random(1).randbytes(size // 2)
    bodies = [b"", large, large, b"", large * 4, b"", b"", b""]
    store.store(TENANT, [incoming(str(n), body, "a/b") for n, body in enumerate(bodies)])
    for order, expected in (
        (Order.ASCENDING, [["0", "1", "2"], ["3", "4"], ["5", "6", "7"]]),
        (Order.DESCENDING, [["7", "6", "5", "4"], ["3", "2", "1"], ["0"]]),
    ):
        found = []
        choice: dict[str, Any] = {"order": order, "limit": 10}
        page = WrittenPage(b"", 0, more=True)
        while page.more:
            (page,) = written(database, TENANT, choice)
            found.append([one["id"] for one in json.loads(b"[%b]" % page.text)])
            choice["after"] = page.last
        assert found == expected


def test_what_is_stored_small_counts_as_it_is_written(
    database: Database, store: PostgresMessageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 64 * 1024)
    monkeypatch.setattr(pages, "ROWS_BYTES", 64 * 1024)
    monkeypatch.setattr(pages, "written", pages.written.__wrapped__)
    monkeypatch.setattr(pages, "rows", pages.rows.__wrapped__)
    blank, digits = b'"%b"' % (b" " * 40_000), b"[%b]" % b",".join([b"1e-400"] * 100)
    headers = [None] * 20 + [{"h": "x" * 20_000}] * 4
    bodies = [blank] * 10 + [digits] * 10 + [b"1"] * 4
    batch = [incoming(str(n), bodies[n], headers=headers[n]) for n in range(24)]
    assert store.store(TENANT, batch).stored == 24
    for order in Order:
        for topic in (None, "default"):
            choice: dict[str, Any] = {"order": order, "topic": topic, "limit": 50, "after": None}
            found: list[int] = []
            page = WrittenPage(b"", 0, more=True)
            while page.more:
                rows = store.page(TENANT, **choice)
                (page,) = written(database, TENANT, choice)
                assert json.loads(b"[%b]" % page.text) == shown(rows)
                assert len(page.text) < 64 * 1024 + 42_000
                found.append(len(rows))
                choice["after"] = page.last
            assert sum(found) == 24
            assert max(found) < 6


@pytest.mark.parametrize("most", [9, 99_999])
def test_a_stream_goes_on_at_once_where_rows_were_guessed_to_be_larger_than_they_are(
    store: PostgresMessageStore, most: int
) -> None:
    numbers = random.Random(most)
    body = f"[{','.join(str(numbers.randint(0, most)) for _ in range(9_000))}]".encode()
    assert store.store(TENANT, [incoming(str(n), body) for n in range(99)]).stored == 99
    rows = store.page(TENANT, limit=PAGE)
    assert len(rows) < 99
    assert Chunk(b"".join(bytes(str(row.payload), "ascii") for row in rows), len(rows), 0).full


def test_a_reader_beside_writers_misses_none_and_sees_none_twice(
    store: PostgresMessageStore,
) -> None:
    writers, batches, size = 4, 15, 7

    def write(writer: int) -> None:
        for batch in range(batches):
            store.store(TENANT, [incoming(f"{writer}-{batch}-{n}") for n in range(size)])

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    after = 0
    finishing = False
    while True:
        page = store.page(TENANT, after=after, limit=50)
        seen.extend(row.id for row in page)
        after = page[-1].position if page else after
        if finishing and not page:
            break
        finishing = not any(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()
    assert len(seen) == len(set(seen)) == writers * batches * size


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(
    max_examples=examples(30, 200),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    bodies=st.lists(
        st.binary(max_size=60)
        | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass"))
        | json_values.map(lambda value: json.dumps(value).encode()),
        min_size=1,
        max_size=20,
    ),
    content_type=st.sampled_from([None, "application/json", "Application/JSON; a=b", "text/plain"]),
)
def test_any_bytes_are_either_stored_or_named(
    database: Database, store: PostgresMessageStore, bodies: list[bytes], content_type: str | None
) -> None:
    before = store.counts(TENANT).stored
    result: StoreResult = store.store(
        TENANT, [incoming(None, body, content_type) for body in bodies]
    )
    assert result.stored + len(result.unstorable) == len(bodies)
    rows = store.page(TENANT, limit=20, order=Order.DESCENDING)
    (page,) = written(database, TENANT, {"limit": 20, "order": Order.DESCENDING})
    assert orjson.loads(b"[%b]" % page.text) == [orjson.loads(message_json(row)) for row in rows]
    assert result.duplicates == 0
    assert store.counts(TENANT).stored == before + result.stored


def read(database: Database, call: Callable[[PostgresPageReader], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call(PostgresPageReader(LoopQueries(database)))

    return asyncio.run(run())


@pytest.mark.parametrize("identity", ["1", "a/b", 'a"b\\c\n\u2028é\U0001f600', "'; DROP", "%s{}"])
def test_one_message_is_written_as_in_a_page(
    database: Database, store: PostgresMessageStore, identity: str
) -> None:
    store.store(TENANT, [incoming("before"), incoming(identity, b"\x00", "text/plain")])
    found = read(database, lambda reader: reader.written_message(TENANT, identity))
    (page,) = written(database, TENANT, {"after": 1})
    assert found == WrittenMessage(page.text)


@pytest.mark.parametrize("identity", ["", "2", "1 ", "\0", "1\0", "\ud800", "x" * 100_000])
def test_a_message_that_is_not_there_is_none(
    database: Database, store: PostgresMessageStore, identity: str
) -> None:
    store.store(TENANT, [incoming("1")])
    found = read(database, lambda reader: reader.written_message(TENANT, identity))
    assert found == WrittenMessage(None)


def test_tenants_with_messages_come_in_the_order_of_their_bytes(
    database: Database, store: PostgresMessageStore
) -> None:
    ids = ["a", "a-1", "a0", "aa", "b"]
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO tenantry.tenants SELECT id, 1, 'active', '{}', now(), now()"
            " FROM unnest(%s::text[]) AS id",
            [[*ids, "empty", TENANT]],
        )
    for tenant_id in (*ids, "empty"):
        store.create_partition(tenant_id)
    for tenant_id in ids:
        store.store(tenant_id, [incoming("1")])
    up, down = Order.ASCENDING, Order.DESCENDING
    for beyond, limit, order, expected in (
        (None, 10, up, ids),
        (None, 2, up, ids[:2]),
        ("a-1", 10, up, ids[2:]),
        ("b", 10, up, []),
        (None, 10, down, ids[::-1]),
        ("aa", 2, down, ["a0", "a-1"]),
        ("a", 10, down, []),
    ):
        query = partial(PostgresPageReader.with_messages, beyond=beyond, limit=limit, order=order)
        assert read(database, query) == expected
