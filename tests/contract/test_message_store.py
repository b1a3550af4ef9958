"""What the message store promises, on a real PostgreSQL."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal

import psycopg
import pytest

from tenantry.database.pool import Database
from tenantry.messages.port import Incoming, PartitionMissingError
from tenantry.messages.postgres import PostgresMessageStore
from tenantry.messages.validation import flaw_of_numbers
from tests.fakes.messages import TENANT, incoming


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
def test_what_can_t_be_stored_is_named_and_its_neighbours_are_stored_in_their_order(
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
    stored = [row.id for row in store.page(TENANT)]
    assert stored == [one.id for one in batch if one is not message]


@pytest.mark.parametrize(
    "body",
    [b'"a\\\\u0000b"', b"1e400", b'{"a":1,"a":2}', b" null ", b"\xef\xbb\xbf1"[3:], b"-0"],
)
def test_unusual_json_that_jsonb_can_hold_is_stored(
    store: PostgresMessageStore, body: bytes
) -> None:
    assert store.store(TENANT, [incoming("1", body)]).stored == 1


@pytest.mark.parametrize("number", [b"1e-16383", b"1E131071", b"1e-0300", b"1E00400"])
def test_numbers_count_as_they_are_written_out(database: Database, number: bytes) -> None:
    store = PostgresMessageStore(database, max_bytes=300_000)
    store.create_partition(TENANT)
    many = b"[%b]" % b",".join([number] * 1000)
    quoted = b'{"\\\\\\"%b": ["%b"]}' % (number, number * 1000)
    result = store.store(TENANT, [incoming("before"), incoming("x", many), incoming("y", quoted)])
    assert [(one.index, one.reason) for one in result.unstorable] == [(1, "too_large")]
    assert [row.id for row in store.page(TENANT)] == ["before", "y"]


def test_text_without_an_end_is_looked_at_once() -> None:
    body = b'[1e99999,"' + b'\\"' * 2_000_000
    assert flaw_of_numbers(body, 5_000_000, doubtful=True) is None


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
