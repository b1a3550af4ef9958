"""Messages that are stored, read page by page."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Final, Protocol, TypeVar
from urllib.parse import parse_qsl

from fastapi import FastAPI, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import across, answers, links, lookup, render, schemas
from tenantry.api.cursors import Cursors, FormerCursorError
from tenantry.api.documented import errors
from tenantry.api.lanes import Lane
from tenantry.api.services import Services, Who
from tenantry.domain import names
from tenantry.http.auth import principal_of
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem, invalid
from tenantry.http.tokens import Principal, Scope
from tenantry.messages.port import (
    Order,
    PageReader,
    PartitionMissingError,
    WrittenMessage,
    WrittenPage,
)
from tenantry.projections.port import TenantDirectory

_Written = TypeVar("_Written", WrittenPage, WrittenMessage)

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

    async def serve_one(request: Request, match: re.Match[str], _: bytes) -> Response | None:
        if request.scope["query_string"]:
            return None
        return await _one(services, principal_of(request.scope), match[1], match[2], None)

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
        responses=errors(404, 422, 503),
    )
    async def read_message(
        tenant_id: str,
        message_id: str,
        who: Who,
        query: Annotated[schemas.MessageQuery, Query()],
    ) -> Response:
        """Show one stored message by its id, which may hold anything, slashes too."""
        return await _one(services, who, tenant_id, message_id, query.incarnation)


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


async def _one(
    services: Reading, who: Principal, tenant_id: str, message_id: str, wanted: int | None
) -> Response:
    _refuse_formers(who, wanted)
    lookup.checked_id(tenant_id)

    def read(retained: int | None) -> Awaitable[WrittenMessage]:
        return services.page_reader.written_message(tenant_id, message_id, retained=retained)

    found = (await _read(services, tenant_id, who, wanted, read)).text
    if found is None:
        await services.threads.run(lookup.readable, services.directory, tenant_id, who)
        raise Problem(
            404,
            "the tenant has no message of this id stored",
            code="message-not-found",
            title="No such message",
        )
    return render.json_response(found)


async def _page(services: Reading, request: Request, query: schemas.MessagesQuery) -> Response:
    who = principal_of(request.scope)
    # A tenant's token that names no tenant means its own; one that names another was refused.
    tenant_id = who.tenant_id if query.tenant_id is None else query.tenant_id
    if tenant_id is None:
        return await _page_of_all(services, request, query)
    _refuse_formers(who, query.incarnation)
    bound = binding(tenant_id, query.topic, query.order)
    cursors = services.cursors
    after, of = None, None
    if query.cursor is not None:
        after, of = cursors.open_place(query.cursor, *bound)
    lookup.checked_id(tenant_id)
    # A topic that can't be is asked for as one that is not there: whose it is counts all the same.
    topic = query.topic if topic_can_be(query.topic) else ""

    def read(retained: int | None) -> Awaitable[WrittenPage]:
        return services.page_reader.written_page(
            tenant_id,
            topic=topic,
            after=after,
            limit=query.limit,
            order=query.order,
            retained=retained,
        )

    page = await _read(services, tenant_id, who, query.incarnation, read)
    if of not in {None, page.whose.incarnation}:
        raise FormerCursorError
    if not page.text and query.incarnation is None:
        # Where messages are, there is their tenant: they go with it.
        await services.threads.run(lookup.readable, services.directory, tenant_id, who)
    end = cursors.seal_place(page.last, page.whose.incarnation, *bound)
    more = end if page.more else None
    follow = end if query.order is Order.ASCENDING else None
    return render.json_response(
        render.message_page(page.text, next_cursor=more, follow_cursor=follow),
        headers=links.next_page(request, more),
    )


def _refuse_formers(who: Principal, wanted: int | None) -> None:
    if wanted is not None and who.scope is Scope.TENANT:
        raise Problem(403, "what was retained of former tenants is for admins")


async def _read(
    services: Reading,
    tenant_id: str,
    who: Principal,
    wanted: int | None,
    read: Callable[[int | None], Awaitable[_Written]],
) -> _Written:
    """Read what is a tenant's: of the one that has the id, or of an incarnation that is `wanted`.

    401 where whoever asks was another tenant of this id; 404 for an incarnation of which nothing
    was retained. A deleted tenant's may have been put aside already for another to come.
    """
    if wanted is not None:
        with suppress(PartitionMissingError):
            return await read(wanted)
    try:
        found = await read(None)
    except PartitionMissingError:
        if wanted is not None:
            raise _no_such_incarnation() from None
        state = await services.threads.run(lookup.readable, services.directory, tenant_id, who)
        if state.exists:
            raise
        return await read(state.incarnation)
    if wanted not in {None, found.whose.incarnation}:
        raise _no_such_incarnation()
    lookup.admit(who, found.whose)
    return found


def _no_such_incarnation() -> Problem:
    return Problem(
        404,
        "nothing was retained of this incarnation of the tenant",
        code="incarnation-not-found",
        title="No such incarnation",
    )


async def _page_of_all(
    services: Reading, request: Request, query: schemas.MessagesQuery
) -> Response:
    if query.incarnation is not None:
        raise invalid([("incarnation", "is one of a tenant's: name it with tenant_id")])
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
