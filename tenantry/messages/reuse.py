"""Ids that were given to another message before: what comes then is not stored, and is told of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import psycopg
import structlog
from psycopg import sql

from tenantry.database.failures import one_line
from tenantry.domain import names
from tenantry.messages.encoding import columns
from tenantry.messages.port import Incoming

if TYPE_CHECKING:
    from tenantry.database.pool import Connection

log = structlog.get_logger(__name__)


def differing(
    connection: Connection,
    tenant_id: str,
    messages: Sequence[Incoming],
    is_json: Sequence[bool],
) -> list[int]:
    """Give the places of messages under whose id something else is stored.

    JSON is compared as JSON. To be asked after messages were found to be duplicates, in no
    transaction: what has been stored is stored, and an answer that fails is none.
    """
    try:
        ids, _, _, payloads, bodies, *_ = columns(messages, is_json)
        parameters = (ids, payloads, bodies, tenant_id)
        rows = connection.execute(_query(tenant_id), parameters).fetchall()
    except (psycopg.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        log.debug("message.ids_not_compared", tenant=tenant_id, error=one_line(error))
        return []
    return [place for (place,) in rows]


@lru_cache(maxsize=1024)
def _query(tenant_id: str) -> bytes:
    table = sql.Identifier("tenantry", names.partition_table_name(tenant_id))
    return (
        sql.SQL(
            "SELECT (m.n - 1)::integer FROM unnest(%b, %b, %b)"
            " WITH ORDINALITY AS m(id, payload, body, n)"
            " JOIN {} AS s ON s.tenant_id = %s AND s.id = m.id"
            " WHERE s.payload IS DISTINCT FROM m.payload OR s.body IS DISTINCT FROM m.body"
            " ORDER BY m.n"
        )
        .format(table)
        .as_bytes(None)
    )
