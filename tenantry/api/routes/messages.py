"""Messages that are stored, read page by page."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.services import Services
from tenantry.domain import names
from tenantry.messages.port import Order, WrittenMessage

TAG: Final = "messages"


def binding(tenant_id: str, topic: str | None, order: Order) -> tuple[str, ...]:
    """Give what a cursor of messages belongs to."""
    return (TAG, tenant_id, topic or "*", order.value)


def topic_can_be(topic: str | None) -> bool:
    """Tell whether any message can have this topic."""
    return topic is None or topic == names.DEFAULT_TOPIC or names.is_topic(topic)


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve stored messages on `app`."""

    @app.get(
        "/messages",
        response_model=answers.MessagePage,
        summary="Read a tenant's stored messages",
        tags=[TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 404, 422, 503)},
    )
    async def read_messages(
        request: Request, query: Annotated[schemas.MessagesQuery, Query()]
    ) -> Response:
        """Read messages in commit order; a page costs the same however deep it is."""
        bound = binding(query.tenant_id, query.topic, query.order)
        cursors = services.cursors
        after = None if query.cursor is None else cursors.open_position(query.cursor, *bound)

        def read() -> tuple[bytes, str | None]:
            tenant_id = lookup.checked_id(query.tenant_id)
            rows: list[WrittenMessage] = []
            if topic_can_be(query.topic):
                rows = services.messages.written_page(
                    tenant_id,
                    topic=query.topic,
                    after=after,
                    limit=query.limit + 1,
                    order=query.order,
                )
            if not rows:  # where rows are, there is their tenant: they go with it
                lookup.readable(services.directory, tenant_id)
            page = rows[: query.limit]
            end = cursors.seal_position(page[-1][0] if page else after or 0, *bound)
            more = end if len(rows) > query.limit else None
            follow = end if query.order is Order.ASCENDING else None
            return render.message_page(page, next_cursor=more, follow_cursor=follow), more

        written, more = await services.pools.reads.run(read)
        return render.json_response(written, headers=links.next_page(request, more))
