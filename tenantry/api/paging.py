"""Pages read by way of a message store, for one that can't read them on the event loop."""

from __future__ import annotations

from tenantry.api import render
from tenantry.api.pool import Pool
from tenantry.messages.port import MessageStore, Order, WrittenPage


class PooledPageReader:
    """A page reader (`tenantry.messages.port.PageReader`) over any message store, on threads."""

    def __init__(self, store: MessageStore, pool: Pool) -> None:
        self._store = store
        self._pool = pool

    async def written_page(
        self, tenant_id: str, *, topic: str | None, after: int | None, limit: int, order: Order
    ) -> WrittenPage:
        """See `PageReader.written_page`."""

        def read() -> WrittenPage:
            rows = self._store.page(
                tenant_id, topic=topic, after=after, limit=limit + 1, order=order
            )
            page = rows[:limit]
            text = b",".join([render.dumps(render.message(row)) for row in page])
            last = page[-1].position if page else after or 0
            return WrittenPage(text, last, more=len(rows) > limit)

        return await self._pool.run(read)
