"""Messages that are stored, read page by page."""

from __future__ import annotations

import re
from typing import Annotated, Final, Protocol
from urllib.parse import parse_qsl

from fastapi import FastAPI, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.cursors import Cursors
from tenantry.api.documented import errors
from tenantry.api.lanes import Lane
from tenantry.api.pool import Pool
from tenantry.api.services import Services
from tenantry.domain import names
from tenantry.messages.port import Order, PageReader, WrittenPage
from tenantry.projections.port import TenantDirectory

TAG: Final = "messages"
_PATH: Final = re.compile("/messages")


def binding(tenant_id: str, topic: str | None, order: Order) -> tuple[str, ...]:
    """Give what a cursor of messages belongs to."""
    return (TAG, tenant_id, topic or "*", order.value)


def topic_can_be(topic: str | None) -> bool:
    """Tell whether any message can have this topic."""
    return topic is None or topic == names.DEFAULT_TOPIC or names.is_topic(topic)


class Reading(Protocol):
    """What pages are read with."""

    @property
    def page_reader(self) -> PageReader:
        """Reads them."""

    @property
    def directory(self) -> TenantDirectory:
        """Tells an empty page from no tenant, on `threads`."""

    @property
    def cursors(self) -> Cursors:
        """Opens and seals cursors."""

    @property
    def threads(self) -> Pool:
        """Threads for what blocks."""


def lane(services: Reading) -> Lane:
    """Give the short way to pages."""

    async def serve(request: Request, _: object, __: bytes) -> Response | None:
        query = _plain(request.scope["query_string"])
        return None if query is None else await _page(services, request, query)

    return Lane(method="GET", path=_PATH, serve=serve)


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
        return await _page(services, request, query)


def _plain(query_string: bytes) -> schemas.MessagesQuery | None:
    """Read a query whose parameters are valid and come once each; None for any other."""
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        return None
    try:
        return schemas.MessagesQuery.model_validate(given)
    except ValidationError:
        return None


async def _page(services: Reading, request: Request, query: schemas.MessagesQuery) -> Response:
    bound = binding(query.tenant_id, query.topic, query.order)
    cursors = services.cursors
    after = None if query.cursor is None else cursors.open_position(query.cursor, *bound)
    tenant_id = lookup.checked_id(query.tenant_id)
    page = WrittenPage(b"", after or 0, more=False)
    if topic_can_be(query.topic):
        page = await services.page_reader.written_page(
            tenant_id, topic=query.topic, after=after, limit=query.limit, order=query.order
        )
    if not page.text:  # where messages are, there is their tenant: they go with it
        await services.threads.run(lookup.readable, services.directory, tenant_id)
    end = cursors.seal_position(page.last, *bound)
    more = end if page.more else None
    follow = end if query.order is Order.ASCENDING else None
    return render.json_response(
        render.message_page(page.text, next_cursor=more, follow_cursor=follow),
        headers=links.next_page(request, more),
    )
