"""Pages read by way of rows in memory, on threads, as a store that blocks would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tenantry.api import render
from tenantry.api.pool import Pool
from tenantry.messages.port import Order, StoredMessage, WrittenPage


class Rows(Protocol):
    """Messages by tenant, and pages of them."""

    rows: dict[str, list[StoredMessage]]
    page: Callable[..., list[StoredMessage]]


class RowsReader:
    """A page reader (`tenantry.messages.port.PageReader`) over rows."""

    def __init__(self, store: Rows) -> None:
        self._store = store
        self._pool = Pool(4)

    async def with_messages(self, beyond: str | None, *, limit: int, order: Order) -> list[str]:
        up = order is Order.ASCENDING
        rows: Mapping[str, Sequence[StoredMessage]] = self._store.rows
        ids = sorted((key for key, found in rows.items() if found), reverse=not up)
        return [one for one in ids if beyond is None or (one > beyond if up else one < beyond)][
            :limit
        ]

    async def written_message(self, tenant_id: str, message_id: str) -> bytes | None:
        found = [row for row in self._store.page(tenant_id, limit=1000) if row.id == message_id]
        return render.dumps(render.message(found[0])) if found else None

    async def written_page(
        self, tenant_id: str, *, topic: str | None, after: int | None, limit: int, order: Order
    ) -> WrittenPage:
        def read() -> WrittenPage:
            found = self._store.page(
                tenant_id, topic=topic, after=after, limit=limit + 1, order=order
            )
            page = found[:limit]
            text = b",\n".join([render.dumps(render.message(row)) for row in page])
            last = page[-1].position if page else after or 0
            return WrittenPage(text, last, more=len(found) > limit, rows=len(page))

        return await self._pool.run(read)
