"""Pages read by way of rows in memory, on threads, as a store that blocks would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tenantry.api.schemas.messages import message_json
from tenantry.http.pool import Pool
from tenantry.messages.port import Order, StoredMessage, Whose, WrittenMessage, WrittenPage


class Rows(Protocol):
    """Messages by tenant, and pages of them."""

    rows: dict[str, list[StoredMessage]]
    retained: dict[tuple[str, int], list[StoredMessage]]
    whose: Callable[[str], Whose]
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

    async def written_message(
        self, tenant_id: str, message_id: str, *, retained: int | None = None
    ) -> WrittenMessage:
        rows = self._page(tenant_id, retained, limit=1000)
        found = [row for row in rows if row.id == message_id]
        text = message_json(found[0]) if found else None
        return WrittenMessage(text, self._whose(tenant_id, retained))

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
        def read() -> WrittenPage:
            found = self._page(
                tenant_id, retained, topic=topic, after=after, limit=limit + 1, order=order
            )
            page = found[:limit]
            text = b",\n".join([message_json(row) for row in page])
            last = page[-1].position if page else after or 0
            return WrittenPage(
                text,
                last,
                more=len(found) > limit,
                rows=len(page),
                whose=self._whose(tenant_id, retained),
            )

        return await self._pool.run(read)

    def _page(self, tenant_id: str, retained: int | None, **wanted: Any) -> list[StoredMessage]:
        return self._store.page(tenant_id, retained=retained, **wanted)

    def _whose(self, tenant_id: str, retained: int | None) -> Whose:
        return self._store.whose(tenant_id) if retained is None else Whose(retained, None)
