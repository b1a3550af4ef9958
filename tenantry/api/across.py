"""Pages of all tenants' messages together, by tenant id and position."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from tenantry.api.paging import BadCursorError
from tenantry.domain import names
from tenantry.messages.pages import PAGE_BYTES
from tenantry.messages.port import Order, PageReader, PartitionMissingError

MOST_TENANTS: Final = 64
"""The most tenants read for a page, which bounds its cost where few of them have matches."""

_AT_ONCE: Final = 16
_BETWEEN: Final = b",\n"


class Place(NamedTuple):
    """Where a page ended: beyond a position of a tenant's, or (None) beyond all its messages.

    Positions are those of one `incarnation` of the tenant.
    """

    tenant_id: str
    position: int | None
    incarnation: int = 1

    def encode(self) -> bytes:
        """Encode it for a cursor."""
        place = b""
        if self.position is not None:
            place = self.position.to_bytes(8) + self.incarnation.to_bytes(4)
        return b"%02d" % len(place) + place + self.tenant_id.encode()

    @classmethod
    def decode(cls, value: bytes) -> Place:
        """Decode it, or raise `BadCursorError`."""
        size = {b"00": 0, b"12": 12}.get(value[:2])
        if size is None:
            raise BadCursorError
        place, tenant_id = value[2 : 2 + size], value[2 + size :].decode("ascii", "replace")
        if not names.is_tenant_id(tenant_id) or len(place) < size:
            raise BadCursorError
        position = int.from_bytes(place[:8]) if place else None
        return cls(tenant_id, position, int.from_bytes(place[8:]) or 1)


class Page(NamedTuple):
    """Messages as JSON with commas between them, and where the next page begins, if there is one.

    It may hold fewer than were asked for, even none, though more follow.
    """

    text: bytes
    end: Place | None


async def read(
    reader: PageReader, *, topic: str | None, beyond: Place | None, limit: int, order: Order
) -> Page:
    """Read messages after a place, tenant by tenant; tenants without messages cost nothing.

    Raises `StoreUnavailableError`.
    """
    parts: list[bytes] = []
    size, looked, left, end = 0, 0, limit, beyond
    waiting: deque[Place] = deque()
    if beyond is not None and beyond.position is not None:
        waiting.append(beyond)
    last = None if beyond is None else beyond.tenant_id
    while True:
        if not waiting:
            found = await reader.with_messages(last, limit=_AT_ONCE, order=order)
            if not found:
                return Page(_BETWEEN.join(parts), None)
            waiting.extend(Place(tenant_id, None) for tenant_id in found)
            last = found[-1]
        if left <= 0 or looked >= MOST_TENANTS or size >= PAGE_BYTES:
            return Page(_BETWEEN.join(parts), end)
        tenant_id, after, incarnation = waiting.popleft()
        looked += 1
        end = Place(tenant_id, None)
        try:
            page = await reader.written_page(
                tenant_id, topic=topic, after=after, limit=left, order=order
            )
        except PartitionMissingError:  # deleted a moment ago
            continue
        if after is not None and page.whose.incarnation != incarnation:
            # Another tenant has the id now: it is read from its start.
            waiting.appendleft(Place(tenant_id, None))
            continue
        if page.text:
            parts.append(page.text)
            size += len(page.text)
            left -= page.rows
        if page.more:
            return Page(_BETWEEN.join(parts), Place(tenant_id, page.last, page.whose.incarnation))
