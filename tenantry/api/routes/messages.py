"""Messages that are stored, read page by page."""

from __future__ import annotations

import re
from typing import Annotated, Final, Protocol
from urllib.parse import parse_qsl

from fastapi import FastAPI, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import across, answers, links, lookup, render, schemas
from tenantry.api.auth import principal_of
from tenantry.api.cursors import Cursors
from tenantry.api.documented import errors
from tenantry.api.lanes import Lane
from tenantry.api.pool import Pool
from tenantry.api.problems import Problem
from tenantry.api.services import Services
from tenantry.domain import names
from tenantry.messages.port import Order, PageReader, WrittenPage
from tenantry.projections.port import TenantDirectory

TAG: Final = "messages"
_ALL: Final = "*"
"""Stands for all tenants in what a cursor belongs to: no tenant is called so."""

_PATH: Final = re.compile("/messages")
_PATH_OF_ONE: Final = re.compile("/tenants/([^/]+)/messages/(.+)", re.DOTALL)


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


def lanes(services: Reading) -> tuple[Lane, Lane]:
    """Give the short ways to pages, and to one message."""

    async def serve(request: Request, _: object, __: bytes) -> Response | None:
        query = _plain(request.scope["query_string"])
        return None if query is None else await _page(services, request, query)

    async def serve_one(_: Request, match: re.Match[str], __: bytes) -> Response:
        return await _one(services, match[1], match[2])

    return (
        Lane(method="GET", path=_PATH, serve=serve),
        Lane(method="GET", path=_PATH_OF_ONE, serve=serve_one),
    )


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve stored messages on `app`."""

    @app.get(
        "/messages",
        response_model=answers.MessagePage,
        summary="Read stored messages",
        tags=[TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 404, 422, 503)},
    )
    async def read_messages(
        request: Request, query: Annotated[schemas.MessagesQuery, Query()]
    ) -> Response:
        """Read a tenant's messages in commit order, or all tenants' by tenant id and position.

        A page costs the same however deep it is.
        """
        return await _page(services, request, query)

    @app.get(
        "/tenants/{tenant_id}/messages/{message_id:any}",
        response_model=answers.Message,
        summary="Show a stored message",
        tags=[TAG],
        responses=errors(404, 503),
    )
    async def read_message(tenant_id: str, message_id: str) -> Response:
        """Show one stored message by its id, which may hold anything, slashes too."""
        return await _one(services, tenant_id, message_id)


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


async def _one(services: Reading, tenant_id: str, message_id: str) -> Response:
    found = await services.page_reader.written_message(lookup.checked_id(tenant_id), message_id)
    if found is None:
        await services.threads.run(lookup.readable, services.directory, tenant_id)
        raise Problem(
            404,
            "the tenant has no message of this id stored",
            code="message-not-found",
            title="No such message",
        )
    return render.json_response(found)


async def _page(services: Reading, request: Request, query: schemas.MessagesQuery) -> Response:
    # A tenant's token that names no tenant means its own; one that names another was refused.
    wanted = principal_of(request.scope).tenant_id if query.tenant_id is None else query.tenant_id
    if wanted is None:
        return await _page_of_all(services, request, query)
    bound = binding(wanted, query.topic, query.order)
    cursors = services.cursors
    after = None if query.cursor is None else cursors.open_position(query.cursor, *bound)
    tenant_id = lookup.checked_id(wanted)
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


async def _page_of_all(
    services: Reading, request: Request, query: schemas.MessagesQuery
) -> Response:
    bound = binding(_ALL, query.topic, query.order)
    cursors = services.cursors
    beyond = None
    if query.cursor is not None:
        beyond = across.Place.decode(cursors.open(query.cursor, *bound))
    text, end = b"", None
    if topic_can_be(query.topic):
        text, end = await across.read(
            services.page_reader,
            topic=query.topic,
            beyond=beyond,
            limit=query.limit,
            order=query.order,
        )
    more = None if end is None else cursors.seal(end.encode(), *bound)
    return render.json_response(
        render.message_page(text, next_cursor=more, follow_cursor=None),
        headers=links.next_page(request, more),
    )
