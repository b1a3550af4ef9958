"""What the message store promises, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantry.api.schemas.messages import message_json
from tenantry.database.loop import LoopQueries
from tenantry.database.pool import Database
from tenantry.messages.pages import PAGE_BYTES
from tenantry.messages.port import (
    Incoming,
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

TENANT = "t"


def incoming(
    identity: str | None = "1",
    body: bytes = b"{}",
    content_type: str | None = "application/json",
    topic: str = "default",
    headers: dict[str, object] | None = None,
    published: int | None = None,
) -> Incoming:
    return Incoming(identity, topic, 0, body, content_type, headers, published)


@pytest.fixture
def store(database: Database) -> PostgresMessageStore:
    store = PostgresMessageStore(database)
    store.create_partition(TENANT)
    return store


def test_a_json_message_is_stored_as_its_payload(store: PostgresMessageStore) -> None:
    body = '{"n": 12345678901234567890.10, "ü": [null, true]}'.encode()
    store.store(TENANT, [incoming("1", body, headers={"a": 1}, published=1_700_000_000_123)])
    (row,) = store.page(TENANT)
    assert row.body is None
    assert row.payload is not None
    assert json.loads(row.payload, parse_float=Decimal) == json.loads(body, parse_float=Decimal)
    assert (row.id, row.tenant_id, row.topic, row.partition) == ("1", TENANT, "default", 0)
    assert row.headers == '{"a": 1}'
    assert row.published_at == datetime.fromtimestamp(1_700_000_000.123, UTC)


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", ""])
def test_other_content_types_are_stored_as_bytes(
    store: PostgresMessageStore, content_type: str
) -> None:
    store.store(TENANT, [incoming("1", b"\x00\xff{", content_type)])
    (row,) = store.page(TENANT)
    assert (row.payload, row.body, row.content_type) == (None, b"\x00\xff{", content_type)


def test_a_message_without_a_content_type_is_json(store: PostgresMessageStore) -> None:
    result = store.store(TENANT, [incoming("1", b"[1]", None), incoming("2", b"no", None)])
    assert [one.index for one in result.unstorable] == [1]
    assert [row.payload for row in store.page(TENANT)] == ["[1]"]


def test_an_id_is_stored_once_within_a_batch_and_ever_after(store: PostgresMessageStore) -> None:
    first = store.store(TENANT, [incoming("1", b"1"), incoming("1", b"2"), incoming("2")])
    again = store.store(TENANT, [incoming("2", b"3"), incoming("3")])
    assert (first.stored, first.duplicates) == (2, 1)
    assert (again.stored, again.duplicates) == (1, 1)
    assert [row.payload for row in store.page(TENANT)] == ["1", "{}", "{}"]
    counts = store.counts(TENANT)
    assert (counts.stored, counts.duplicates, counts.dead_lettered) == (3, 2, 0)


def test_another_content_under_a_used_id_is_told_of_and_the_same_content_is_not(
    store: PostgresMessageStore,
) -> None:
    bytes_ = "application/octet-stream"
    first = [incoming("1", b'{"a": 1.0, "b": 2}'), incoming("2", b"x", bytes_)]
    assert store.store(TENANT, first).reused == ()
    assert store.store(TENANT, first).reused == ()
    again = store.store(
        TENANT,
        [
            incoming("3", b"no"),
            incoming("1", b'{"b":2,"a":1.0}'),
            incoming("1", b'{"a": 2}'),
            incoming("2", b"y", bytes_),
            incoming("4"),
            incoming("4", b"[]"),
            incoming(None),
        ],
    )
    assert (again.stored, again.duplicates, len(again.unstorable)) == (2, 4, 1)
    assert again.reused == (2, 3, 5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-own"])
def test_what_has_a_content_encoding_is_stored_as_the_bytes_that_came(
    store: PostgresMessageStore, encoding: str
) -> None:
    body = gzip.compress(b'{"a": 1}')
    headers: dict[str, object] = {"content-encoding": encoding}
    assert store.store(TENANT, [incoming("1", body, headers=headers)]).stored == 1
    (row,) = store.page(TENANT)
    assert (row.payload, row.body, row.content_type) == (None, body, "application/json")


def test_an_encoding_that_leaves_text_as_it_is_leaves_json_what_it_is(
    store: PostgresMessageStore,
) -> None:
    encodings = ("utf-8", "identity", "", "UTF-8")
    batch = [
        incoming(str(number), headers={"content-encoding": encoding})
        for number, encoding in enumerate(encodings)
    ]
    assert store.store(TENANT, batch).stored == 4
    assert {row.payload for row in store.page(TENANT)} == {"{}"}


def test_a_message_without_an_id_gets_one(store: PostgresMessageStore) -> None:
    assert store.store(TENANT, [incoming(None), incoming(None)]).stored == 2
    assert len({row.id for row in store.page(TENANT)}) == 2


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (incoming("x", b"{"), "not_json"),
        (incoming("x", b""), "not_json"),
        (incoming("x", b"NaN"), "not_json"),
        (incoming("x", b"\xff"), "not_json"),
        (incoming("x", b'"\\ud800"'), "not_json"),
        (incoming("x", b'"a\\u0000b"'), "nul_in_text"),
        (incoming("x", b"[" * 100_000 + b"]" * 100_000), "not_json"),
        (incoming("x", b"1e-20000"), "refused_by_database"),
        (incoming("x\x00y"), "nul_in_text"),
        (incoming("x", b"x", "text/\x00"), "nul_in_text"),
        (incoming("x", b" " * 2000 + b"1"), "too_large"),
    ],
)
def test_what_can_t_be_stored_is_named_and_its_neighbours_are_stored(
    database: Database, message: Incoming, reason: str
) -> None:
    store = PostgresMessageStore(database, max_bytes=1000 if reason == "too_large" else 1_000_000)
    store.create_partition(TENANT)
    batch = [incoming(f"before-{n}") for n in range(5)] + [message]
    batch += [incoming(f"after-{n}") for n in range(5)]
    result = store.store(TENANT, batch)
    assert result.stored == 10
    assert [(one.index, one.reason) for one in result.unstorable] == [(5, reason)]
    assert result.unstorable[0].error
    assert len(store.page(TENANT)) == 10


@pytest.mark.parametrize(
    "body",
    [b'"a\\\\u0000b"', b"1e400", b'{"a":1,"a":2}', b" null ", b"\xef\xbb\xbf1"[3:], b"-0"],
)
def test_unusual_json_that_jsonb_can_hold_is_stored(
    store: PostgresMessageStore, body: bytes
) -> None:
    assert store.store(TENANT, [incoming("1", body)]).stored == 1


def test_headers_of_every_kind_are_stored_as_json(store: PostgresMessageStore) -> None:
    headers: dict[str, object] = {
        "text": "ü\x00",
        "bytes": b"\xff\x00",
        "utf8": b"ok",
        "decimal": Decimal("1.5"),
        "time": datetime(2026, 1, 2, tzinfo=UTC),
        "nested": {"list": [1, None, True, {"deep\x00": "\x00"}]},
        "literal": "\\u0000",
    }
    store.store(TENANT, [incoming("1", headers=headers)])
    (row,) = store.page(TENANT)
    assert row.headers is not None
    assert json.loads(row.headers) == {
        "text": "ü\ufffd",
        "bytes": "ff00",
        "utf8": "ok",
        "decimal": "1.5",
        "time": "2026-01-02T00:00:00+00:00",
        "nested": {"list": [1, None, True, {"deep\ufffd": "\ufffd"}]},
        "literal": "\\u0000",
    }


@pytest.mark.parametrize("published", [-1, 2**63, 10**17, None])
def test_a_time_of_publishing_that_is_none_is_left_out(
    store: PostgresMessageStore, published: int | None
) -> None:
    store.store(TENANT, [incoming("1", published=published)])
    assert store.page(TENANT)[0].published_at is None


@pytest.mark.parametrize("tenant", ["a", "0-9", "x" * 40, "drop-table", "select"])
def test_every_tenant_id_has_a_partition(database: Database, tenant: str) -> None:
    store = PostgresMessageStore(database)
    store.create_partition(tenant)
    store.create_partition(tenant)
    store.store(tenant, [incoming("1"), incoming("2")])
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT tableoid::regclass::text FROM public.messages WHERE tenant_id = %s", [tenant]
        ).fetchall()
    assert len(rows) == 2
    assert len(set(rows)) == 1
    assert store.drop_partition(tenant, retain=True) == 0
    assert len(store.page(tenant)) == 2
    assert store.drop_partition(tenant, retain=False) == 2
    assert store.drop_partition(tenant, retain=False) == 0
    with pytest.raises(PartitionMissingError):
        store.page(tenant)


def test_tenants_are_kept_apart(store: PostgresMessageStore) -> None:
    store.create_partition("u")
    store.store(TENANT, [incoming("1", b"1")])
    store.store("u", [incoming("1", b"2")])
    assert [row.payload for row in store.page(TENANT)] == ["1"]
    assert [row.payload for row in store.page("u")] == ["2"]


def test_without_a_partition_nothing_is_stored(database: Database) -> None:
    with pytest.raises(PartitionMissingError):
        PostgresMessageStore(database).store("nobody", [incoming()])


def test_a_row_of_an_unknown_tenant_is_refused_by_the_database(database: Database) -> None:
    with database.connection() as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            "INSERT INTO public.messages"
            " (tenant_id, id, position, topic, partition, body, created_at)"
            " VALUES ('nobody', '1', 1, 'default', 0, '', now())"
        )


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
    """Read pages of two messages, unless told otherwise, as JSON."""

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
    # Positions that are never given out, as duplicates leave them behind.
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
    database: Database, store: PostgresMessageStore
) -> None:
    large = b"x" * (PAGE_BYTES // 2)
    bodies = [b"", large, large, b"", b"y" * 2 * PAGE_BYTES, b"", b"", b""]
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
