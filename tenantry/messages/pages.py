"""The queries that read a page of a tenant's messages, at the same cost however deep it is."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, LiteralString, TypeAlias

from psycopg import sql

from tenantry.domain import names
from tenantry.messages.port import Order

MAX_POSITION: Final = 2**63 - 1

Parameters: TypeAlias = dict[str, str | int | None]

COLUMNS: Final[LiteralString] = """
    id, tenant_id, position, topic, partition, payload::text AS payload, body, content_type,
    headers::text AS headers, published_at, created_at
"""

# `concat` passes over what is NULL; what is joined by `||` is then NULL as a whole.
WRITTEN: Final[LiteralString] = """
    position,
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
        ',"created_at":"', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        '"}')
"""

_OF_ALL: Final[dict[Order, LiteralString]] = {
    Order.ASCENDING: "position > %(after)s::bigint ORDER BY position",
    Order.DESCENDING: "position < %(after)s::bigint ORDER BY position DESC",
}

# Both columns are compared and sorted by together, so that nothing but the index on both will do.
# Asked for a topic and a position apart, the planner may follow the index on positions and pass
# over what is not of the topic: all rows of the tenant, where the topic's come late.
_OF_TOPIC: Final[dict[Order, LiteralString]] = {
    Order.ASCENDING: """
        (topic, position) > (%(topic)s, %(after)s::bigint)
        AND (topic, position) <= (%(topic)s, 9223372036854775807)
        ORDER BY topic, position""",
    Order.DESCENDING: """
        (topic, position) < (%(topic)s, %(after)s::bigint)
        AND (topic, position) >= (%(topic)s, 0)
        ORDER BY topic DESC, position DESC""",
}


@lru_cache(maxsize=1024)
def query(tenant_id: str, columns: LiteralString, *, of_topic: bool, order: Order) -> bytes:
    """Give the query of a page, with the parameters `topic`, `after` and `limit`.

    It is to be planned anew each time it is run: the plan that is best while a tenant has few
    messages, kept, would read all of them later.
    """
    composed = sql.SQL("SELECT {columns} FROM {table} WHERE {rows} LIMIT %(limit)s").format(
        columns=sql.SQL(columns),
        table=sql.Identifier("tenantry", names.partition_table_name(tenant_id)),
        rows=sql.SQL((_OF_TOPIC if of_topic else _OF_ALL)[order]),
    )
    return composed.as_bytes(None)


def parameters(topic: str | None, after: int | None, limit: int, order: Order) -> Parameters:
    """Give the parameters of a query; without `after` they begin at the end that `order` names."""
    if after is None:
        after = 0 if order is Order.ASCENDING else MAX_POSITION
    return {"topic": topic, "after": after, "limit": limit}
