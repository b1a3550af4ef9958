"""The live tail of a tenant's messages, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

from fastapi import Header, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tenantry.api import streams
from tenantry.api.openapi import Routes
from tenantry.api.routes.messages import TAG, binding, topic_can_be
from tenantry.api.routing import Who
from tenantry.api.schemas.messages import StreamQuery, message_json
from tenantry.api.services import Injected
from tenantry.http.auth import client_of, connection_of, is_still_let_in
from tenantry.messages.port import Order, PartitionMissingError, StoredMessage

_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
_EXAMPLE: Final = """\
retry: 1000
id: kZ0x...

id: p7Qa...
data: {"id":"order-7","tenant_id":"acme","position":8,"topic":"logs","payload":{"order":7}}

: still here

"""


routes = Routes(TAG)


@routes(
    "GET /messages/stream",
    "Follow a tenant's messages as they are stored",
    None,
    errors=(400, 404, 422),
    success={
        "description": "Server-sent events: `id` is a cursor, `data` the message as in "
        "`GET /messages`. Lines that begin with a colon only keep the connection alive.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    },
)
async def follow_messages(
    services: Injected,
    request: Request,
    who: Who,
    query: Annotated[StreamQuery, Query()],
    last_event_id: Annotated[
        str | None,
        Header(
            max_length=1024,
            description="The `id` of the last event that was seen: what came after it follows.",
        ),
    ] = None,
) -> Response:
    """Send every message in commit order, each once, from a cursor or from now on.

    A stream ends when its token expires, soon after the token is revoked, after an hour at most,
    when the server stops, and if the client reads too slowly; reconnect with `Last-Event-ID`, and
    nothing is missed. It takes precedence over `cursor`, which may be a `follow_cursor` of
    `GET /messages`.
    """
    bound = binding(query.tenant_id, query.topic, Order.ASCENDING)
    cursor = last_event_id or query.cursor
    topic = query.topic
    known = topic_can_be(topic)

    def begin() -> tuple[int, int]:
        state = services.lookup.readable(query.tenant_id, who)
        incarnation = state.incarnation
        if cursor is not None:
            return services.cursors.open_place_of(incarnation, cursor, *bound), incarnation
        if not known:
            return 0, incarnation
        newest = services.messages.page(query.tenant_id, limit=1, order=Order.DESCENDING)
        return newest[0].position if newest else 0, incarnation

    def read(position: int) -> streams.Chunk:
        rows: list[StoredMessage] = []
        if known:
            rows = services.messages.page(
                query.tenant_id, topic=topic, after=position, limit=streams.PAGE
            )
        # Checked after the rows were read: the actor of another tenant of this id appears in the
        # runtime state before that tenant has any rows.
        runtime = services.control.runtime(query.tenant_id)
        if runtime is None:  # its actors are on another node, or nowhere: ask the directory
            now = services.directory.get(query.tenant_id)
            whose = None if now is None else now.incarnation
        else:
            whose = runtime.incarnation
        if whose not in {None, incarnation}:
            raise PartitionMissingError(f"{query.tenant_id!r} is another tenant by now")
        data = b"".join(_event(cursor_at(row.position), row) for row in rows)
        return streams.Chunk(data, len(rows), rows[-1].position if rows else position)

    def cursor_at(position: int) -> str:
        return services.cursors.seal_place(position, incarnation, *bound)

    start, incarnation = await services.pools.reads.run(begin)
    first = cursor_at(start)
    events = services.streams.follow(
        read,
        tenant_id=query.tenant_id,
        after=start,
        opening=f"retry: 1000\nid: {first}\n\n".encode(),
        closing=connection_of(request.scope).closing,
        client=client_of(request.scope),
        longest=who.good_for(datetime.now(UTC)),
        let_in=partial(is_still_let_in, request.scope, services.identity),
    )
    return _Events(events, services.streams.place(client_of(request.scope)))


class _Events(Response):
    """A streaming answer; it holds one of the client's places until its events end."""

    def __init__(self, events: AsyncGenerator[bytes], place: AbstractContextManager[None]) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            async with aclosing(self._events) as events:
                headers = {"X-Accel-Buffering": "no"}
                answer = StreamingResponse(events, headers=headers, media_type=self.media_type)
                await answer(scope, receive, send)


def _event(cursor: str, row: StoredMessage) -> bytes:
    # JSON may have line ends between its tokens; in an event they would end the data.
    data = message_json(row).translate(_ONE_LINE)
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), data)
