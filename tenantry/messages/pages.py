"""The queries that read a page of a tenant's messages, at the same cost however deep it is.

They must be planned anew for each run: the best plan for a tenant with few messages, if kept, would
read all of them later.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, LiteralString

from psycopg import sql

from tenantry.domain import names
from tenantry.messages.port import FIRST, Order, Whose

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MAX_POSITION: Final = 2**63 - 1

PAGE_BYTES: Final = 8 * 1024 * 1024
"""A written page is full once its payloads, bodies and headers take so many bytes."""

ROWS_BYTES: Final = 1024 * 1024
"""The same for a page's rows, of which streams hold many at once."""

# Written out, a text may be a hundred times its stored size, and a number a thousand times; the
# written size counts. Finding it takes reading the value, so a guess first limits the rows for
# which it is found.
_MEASURED: Final[LiteralString] = """
(
    SELECT *, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before
    FROM (
        SELECT *, CASE WHEN guessed_before < {bytes} THEN
                coalesce(octet_length(body) / 3 * 4, octet_length(payload::text), 0)
                + coalesce(octet_length(headers::text), 0)
            END AS size
        FROM (
            SELECT *, sum(guess) OVER (ROWS UNBOUNDED PRECEDING) - guess AS guessed_before
            FROM (
                SELECT id, tenant_id, position, topic, partition, payload, body, content_type,
                       headers, published_at, created_at,
                       coalesce(octet_length(body), 0) + coalesce(pg_column_size(headers), 0)
                       + coalesce(pg_column_size(payload), 0)
                       * CASE WHEN pg_column_compression(payload) IS NULL THEN 1 ELSE 4 END AS guess
                FROM {table} WHERE {condition} LIMIT $2::bigint
            ) AS found
        ) AS guessed
        OFFSET 0 -- else the size would be found out for each time that it is named
    ) AS looked_at
) AS measured
"""

_ROWS: Final[LiteralString] = """
SELECT id, tenant_id, position, topic, partition, payload::text AS payload, body, content_type,
       headers::text AS headers, published_at, created_at
FROM {measured} WHERE before < {bytes}
"""

# `concat` skips NULL, and `||` with a NULL operand is NULL: such members are left out.
_OBJECT: Final[LiteralString] = """
        concat(
            '{"id":', to_json(id),
            ',"tenant_id":', to_json(tenant_id),
            ',"position":', position,
            ',"topic":', to_json(topic),
            ',"partition":', partition,
            ',"payload":' || payload::text,
            ',"body":"' || translate(encode(body, 'base64'), E'\\n', '') || '"',
            ',"content_type":', coalesce(to_json(content_type)::text, 'null'),
            ',"headers":', coalesce(headers::text, 'null'),
            ',"created_at":"',
            to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            '"}')"""

_WRITTEN: Final[LiteralString] = """
SELECT
    count(*),
    count(*) FILTER (WHERE before < {bytes}),
    {furthest}(position) FILTER (WHERE before < {bytes}),
    string_agg({object},
        E',\\n') FILTER (WHERE before < {bytes}),
    {whose}
FROM {measured}
"""

_ONE: Final[LiteralString] = """
SELECT (SELECT {object} FROM {table} WHERE tenant_id = {tenant} AND id = $1), {whose}
"""

# From the same snapshot as the rows: the incarnation and, except for the first, the time it began,
# in microseconds since 1970.
_WHOSE: Final[LiteralString] = """
    (SELECT CASE WHEN c.incarnation = 1 THEN '1' ELSE
         concat(c.incarnation, ' ', (extract(epoch FROM c.since) * 1000000)::bigint) END
     FROM tenantry.tenant_counters AS c WHERE c.tenant_id = {tenant})
"""

# Tenants without rows are excluded by the counters, without reading a partition. The index gives
# tenants in the order of their ids' bytes; the counters' column sorts differently.
_WITH_MESSAGES: Final = b"""
SELECT coalesce(string_agg(id, ','), '')
FROM (
    SELECT t.id FROM tenantry.tenants AS t
    JOIN tenantry.tenant_counters AS c ON c.tenant_id = t.id COLLATE "default"
    LEFT JOIN tenantry.removals AS r ON r.tenant_id = t.id
    WHERE %b AND c.stored > c.removed + coalesce(r.by_age + r.by_rows, 0)
    ORDER BY t.id %b LIMIT $2
) AS found
"""
WITH_MESSAGES: Final = _WITH_MESSAGES % (b"t.id > $1", b"ASC")
WITH_MESSAGES_BACKWARDS: Final = _WITH_MESSAGES % (b"($1 = '' OR t.id < $1)", b"DESC")

# Every row up to this position was removed, but until VACUUM the index leads to each of them.
# Backward reads meet them on the very last page only. With a second bound there, the planner would
# take the range for a small one, and read and sort it as a whole.
_FLOOR: Final[LiteralString] = """
    coalesce((SELECT r.up_to FROM tenantry.removals AS r WHERE r.tenant_id = {tenant}), 0)
"""

_OF_ALL: Final[dict[Order, LiteralString]] = {
    Order.ASCENDING: "position > greatest($1::bigint, {floor}) ORDER BY position",
    Order.DESCENDING: "position < $1::bigint ORDER BY position DESC",
}

# Both columns are compared and sorted together, so that only the index on both will do. With
# separate conditions on topic and position, the planner may follow the index on positions and skip
# rows of other topics: all rows of the tenant, if the topic's come late.
_OF_TOPIC: Final[dict[Order, LiteralString]] = {
    Order.ASCENDING: """
        (topic, position) > ($3::text, greatest($1::bigint, {floor}))
        AND (topic, position) <= ($3::text, 9223372036854775807)
        ORDER BY topic, position""",
    Order.DESCENDING: """
        (topic, position) < ($3::text, $1::bigint) AND (topic, position) > ($3::text, {floor})
        ORDER BY topic DESC, position DESC""",
}


@lru_cache(maxsize=1024)
def rows(tenant_id: str, *, of_topic: bool, order: Order) -> bytes:
    """Return the query of a page's rows: `$1` after, `$2` limit, `$3` topic if wanted.

    Large rows make the page shorter, within `ROWS_BYTES`, but one row always fits.
    """
    return _composed(_ROWS, tenant_id, of_topic, order, None, most=ROWS_BYTES)


@lru_cache(maxsize=1024)
def written(tenant_id: str, *, of_topic: bool, order: Order, retained: int | None = None) -> bytes:
    """Return the query of a page as JSON: `$1` after, `$2` limit, `$3` topic if wanted.

    Its one row: the number of messages found, and of those returned, within `PAGE_BYTES`; the
    furthest position of these; these messages, each written as the API's JSON object, with a comma
    and a line feed between them: a line feed is nowhere else. Then whose they are, see
    `read_whose`. With `retained` they are a former tenant's, of that incarnation.
    """
    return _composed(_WRITTEN, tenant_id, of_topic, order, retained, most=PAGE_BYTES)


@lru_cache(maxsize=1024)
def one(tenant_id: str, *, retained: int | None = None) -> bytes:
    """Return the query of one message as JSON by its id `$1`; NULL if there is none.

    Then whose it is, as in `written`.
    """
    return (
        sql.SQL(_ONE)
        .format(
            table=_table(tenant_id, retained),
            tenant=sql.Literal(tenant_id),
            object=sql.SQL(_OBJECT),
            whose=_whose(tenant_id, retained),
        )
        .as_bytes(None)
    )


def begin(order: Order) -> int:
    """Return the position before the first page."""
    return 0 if order is Order.ASCENDING else MAX_POSITION


def _composed(
    query: LiteralString,
    tenant_id: str,
    of_topic: bool,
    order: Order,
    retained: int | None,
    *,
    most: int,
) -> bytes:
    # Removals concern the living tenant's rows.
    floor = sql.SQL(_FLOOR if retained is None else "0").format(tenant=sql.Literal(tenant_id))
    condition = sql.SQL((_OF_TOPIC if of_topic else _OF_ALL)[order]).format(floor=floor)
    measured = sql.SQL(_MEASURED).format(
        table=_table(tenant_id, retained), condition=condition, bytes=sql.Literal(most)
    )
    composed = sql.SQL(query).format(
        measured=measured,
        whose=_whose(tenant_id, retained),
        object=sql.SQL(_OBJECT),
        bytes=sql.Literal(most),
        furthest=sql.SQL("max" if order is Order.ASCENDING else "min"),
    )
    return composed.as_bytes(None)


def _table(tenant_id: str, retained: int | None) -> sql.Identifier:
    if retained is None:
        return sql.Identifier("tenantry", names.partition_table_name(tenant_id))
    return sql.Identifier("tenantry", names.retained_table_name(tenant_id, retained))


def _whose(tenant_id: str, retained: int | None) -> sql.Composed:
    if retained is None:
        return sql.SQL(_WHOSE).format(tenant=sql.Literal(tenant_id))
    return sql.SQL("{}").format(sql.Literal(str(retained)))


def read_whose(written: bytes | None) -> Whose:
    """Read whose messages a query has found; NULL if the counters were removed by hand."""
    if written is None:
        return FIRST
    incarnation, _, since = written.partition(b" ")
    return Whose(int(incarnation), _EPOCH + timedelta(microseconds=int(since)) if since else None)
