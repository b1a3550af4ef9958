"""Pages of messages as JSON that PostgreSQL writes, read on an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tenantry.database.loop import LoopQueries, Row
from tenantry.messages import pages
from tenantry.messages.port import Order, WrittenMessage, WrittenPage
from tenantry.messages.postgres import store_errors

_BETWEEN: Final = b",\n"


class PostgresPageReader:
    """A page reader (`tenantry.messages.port.PageReader`) on PostgreSQL.

    A page or a message costs one query, which takes its tenant's turn; this program copies the
    text, and parses no message. Belongs to one event loop.
    """

    def __init__(self, queries: LoopQueries) -> None:
        self._queries = queries

    async def with_messages(self, beyond: str | None, *, limit: int, order: Order) -> list[str]:
        """See `PageReader.with_messages`."""
        up = order is Order.ASCENDING
        query = pages.WITH_MESSAGES if up else pages.WITH_MESSAGES_BACKWARDS
        (found,) = await self._row(query, [(beyond or "").encode(), b"%d" % limit])
        return found.decode().split(",") if found else []

    async def written_message(
        self, tenant_id: str, message_id: str, *, retained: int | None = None
    ) -> WrittenMessage:
        """See `PageReader.written_message`."""
        try:
            given = message_id.encode()
        except UnicodeEncodeError:
            given = b"\0"
        # PostgreSQL rejects an id with a NUL, and has none; `whose` is asked for anyway.
        wanted = None if b"\0" in given else given
        query = pages.one(tenant_id, retained=retained)
        text, whose = await self._row(query, [wanted], tenant_id)
        return WrittenMessage(text, pages.read_whose(whose))

    async def written_page(
        self,
        tenant_id: str,
        *,
        topic: str | None,
        after: int | None,
        limit: int,
        order: Order,
        retained: int | None = None,
    ) -> WrittenPage:
        """See `PageReader.written_page`."""
        begin = pages.begin(order) if after is None else after
        # One message more than wanted tells whether more follow.
        parameters: list[bytes | None] = [b"%d" % begin, b"%d" % (limit + 1)]
        if topic is not None:
            parameters.append(topic.encode())
        query = pages.written(tenant_id, of_topic=topic is not None, order=order, retained=retained)
        row = await self._row(query, parameters, tenant_id)
        found, given, furthest, text, written = row
        whose = pages.read_whose(written)
        if found is None or given is None or furthest is None or text is None:
            return WrittenPage(b"", after or 0, more=False, whose=whose)
        last = int.from_bytes(furthest, signed=True)
        rows = int.from_bytes(given)
        if rows <= limit:
            return WrittenPage(text, last, more=found != given, rows=rows, whose=whose)
        beside = -1 if order is Order.ASCENDING else 1
        text = text[: text.rindex(_BETWEEN)]
        return WrittenPage(text, last + beside, more=True, rows=limit, whose=whose)

    async def _row(
        self, query: bytes, parameters: Sequence[bytes | None], tenant_id: str | None = None
    ) -> Row:
        with store_errors(tenant_id):
            return await self._queries.row(query, parameters, tenant_id or "")
