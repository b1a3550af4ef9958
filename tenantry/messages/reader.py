"""Pages of messages as JSON that PostgreSQL writes, read on an event loop."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import errors

from tenantry.database.errors import DatabaseUnavailableError
from tenantry.database.failures import one_line
from tenantry.database.loop import LoopQueries
from tenantry.messages import pages
from tenantry.messages.port import (
    MessageStoreError,
    Order,
    PartitionMissingError,
    StoreUnavailableError,
    WrittenPage,
)

_BETWEEN: Final = b",\n"


class PostgresPageReader:
    """A page reader (`tenantry.messages.port.PageReader`) on PostgreSQL.

    A page costs one query; this program copies its text, and looks at no message. Belongs to one
    event loop.
    """

    def __init__(self, queries: LoopQueries) -> None:
        self._queries = queries

    async def written_page(
        self, tenant_id: str, *, topic: str | None, after: int | None, limit: int, order: Order
    ) -> WrittenPage:
        """See `PageReader.written_page`."""
        begin = pages.begin(order) if after is None else after
        # One message more than wanted tells whether more follow.
        parameters = [b"%d" % begin, b"%d" % (limit + 1)]
        if topic is not None:
            parameters.append(topic.encode())
        query = pages.written(tenant_id, of_topic=topic is not None, order=order)
        try:
            found, given, furthest, text = await self._queries.row(query, parameters)
        except DatabaseUnavailableError as error:
            raise StoreUnavailableError(str(error)) from error
        except errors.UndefinedTable as error:
            raise PartitionMissingError(f"tenant {tenant_id!r} has no partition") from error
        except psycopg.Error as error:
            raise MessageStoreError(one_line(error)) from error
        if found is None or given is None or furthest is None or text is None:
            return WrittenPage(b"", after or 0, more=False)
        last = int.from_bytes(furthest, signed=True)
        if int.from_bytes(given) <= limit:
            return WrittenPage(text, last, more=found != given)
        beside = -1 if order is Order.ASCENDING else 1
        return WrittenPage(text[: text.rindex(_BETWEEN)], last + beside, more=True)
