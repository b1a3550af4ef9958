"""Reading stored messages, page by page or one by its id."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from fastapi import Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import across
from tenantry.api.openapi import Routes
from tenantry.api.paging import Cursors, FormerCursorError, link_header
from tenantry.api.routing import FastRoute, Who, checked_id, held_by_app
from tenantry.api.schemas.common import json_response
from tenantry.api.schemas.messages import (
    Message,
    MessagePage,
    MessageQuery,
    MessagesQuery,
    page_json,
)
from tenantry.api.services import TenantLookup
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

_Written = TypeVar("_Written", WrittenPage, WrittenMessage)

TAG: Final = "messages"
_ALL: Final = "*"
"""Stands for all tenants in a cursor's binding: no tenant has this id."""

_PATH: Final = re.compile("/messages")
_PATH_OF_ONE: Final = re.compile("/tenants/([^/]+)/messages/(.+)", re.DOTALL)


def binding(tenant_id: str, topic: str | None, order: Order) -> tuple[str, ...]:
    """Return the binding of a cursor of messages."""
    return (TAG, tenant_id, topic or "*", order.value)


def topic_can_be(topic: str | None) -> bool:
    """Tell whether any message can have this topic."""
    return topic is None or topic == names.DEFAULT_TOPIC or names.is_topic(topic)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReading:
    """What reading stored messages takes, in the daemon or in its front.

    `lookup`, run on `threads`, tells a tenant without messages from a tenant that does not exist.
    """

    page_reader: PageReader
    lookup: TenantLookup
    cursors: Cursors
    threads: Pool


_Reading: TypeAlias = Annotated[MessageReading, held_by_app("reading")]

routes = Routes(TAG)


def fast_routes(reading: MessageReading) -> tuple[FastRoute, FastRoute]:
    """Return the fast routes for pages, and for one message."""

    async def serve(request: Request, _: object, __: bytes) -> Response | None:
        query = _plain(request.scope["query_string"])
        return None if query is None else await _page(reading, request, query)

    async def serve_one(request: Request, match: re.Match[str], _: bytes) -> Response | None:
        if request.scope["query_string"]:
            return None
        return await _one(reading, principal_of(request.scope), match[1], match[2], None)

    return (
        FastRoute(method="GET", path=_PATH, serve=serve),
        FastRoute(method="GET", path=_PATH_OF_ONE, serve=serve_one),
    )


@routes("GET /messages", "Read stored messages", MessagePage, errors=(400, 404, 422), paged=True)
async def read_messages(
    reading: _Reading, request: Request, query: Annotated[MessagesQuery, Query()]
) -> Response:
    """Read a tenant's messages in commit order, or all tenants' by tenant id and position.

    A page costs the same however deep it is.
    """
    return await _page(reading, request, query)


@routes(
    "GET /tenants/{tenant_id}/messages/{message_id:any}",
    "Show a stored message",
    Message,
    errors=(404, 422),
)
async def read_message(
    reading: _Reading,
    tenant_id: str,
    message_id: str,
    who: Who,
    query: Annotated[MessageQuery, Query()],
) -> Response:
    """Show one stored message by its id, which may hold anything, slashes too."""
    return await _one(reading, who, tenant_id, message_id, query.incarnation)


def _plain(query_string: bytes) -> MessagesQuery | None:
    """Read a query whose parameters are valid and come once each; None for any other."""
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        return None
    try:
        return MessagesQuery.model_validate(given)
    except ValidationError:
        return None


async def _one(
    reading: MessageReading, who: Principal, tenant_id: str, message_id: str, wanted: int | None
) -> Response:
    _refuse_formers(who, wanted)
    checked_id(tenant_id)

    def read(retained: int | None) -> Awaitable[WrittenMessage]:
        return reading.page_reader.written_message(tenant_id, message_id, retained=retained)

    found = (await _read(reading, tenant_id, who, wanted, read)).text
    if found is None:
        await reading.threads.run(reading.lookup.readable, tenant_id, who)
        raise Problem(
            404,
            "the tenant has no message of this id stored",
            code="message-not-found",
            title="No such message",
        )
    return json_response(found)


async def _page(reading: MessageReading, request: Request, query: MessagesQuery) -> Response:
    who = principal_of(request.scope)
    # A tenant's token that names no tenant means its own; one that names another tenant is refused.
    tenant_id = who.tenant_id if query.tenant_id is None else query.tenant_id
    if tenant_id is None:
        return await _page_of_all(reading, request, query)
    _refuse_formers(who, query.incarnation)
    bound = binding(tenant_id, query.topic, query.order)
    cursors = reading.cursors
    after, of = None, None
    if query.cursor is not None:
        after, of = cursors.open_place(query.cursor, *bound)
    checked_id(tenant_id)
    # An impossible topic is read like an unknown one: the tenant still has to be checked.
    topic = query.topic if topic_can_be(query.topic) else ""

    def read(retained: int | None) -> Awaitable[WrittenPage]:
        return reading.page_reader.written_page(
            tenant_id,
            topic=topic,
            after=after,
            limit=query.limit,
            order=query.order,
            retained=retained,
        )

    page = await _read(reading, tenant_id, who, query.incarnation, read)
    if of not in {None, page.whose.incarnation}:
        raise FormerCursorError
    if not page.text and query.incarnation is None:
        # Only an empty page needs this check: rows are removed with their tenant.
        await reading.threads.run(reading.lookup.readable, tenant_id, who)
    end = cursors.seal_place(page.last, page.whose.incarnation, *bound)
    more = end if page.more else None
    follow = end if query.order is Order.ASCENDING else None
    return json_response(
        page_json(page.text, next_cursor=more, follow_cursor=follow),
        headers=link_header(request, more),
    )


def _refuse_formers(who: Principal, wanted: int | None) -> None:
    if wanted is not None and who.scope is Scope.TENANT:
        raise Problem(403, "what was retained of former tenants is for admins")


async def _read(
    reading: MessageReading,
    tenant_id: str,
    who: Principal,
    wanted: int | None,
    read: Callable[[int | None], Awaitable[_Written]],
) -> _Written:
    """Read messages of the tenant that has the id, or of the incarnation `wanted`.

    401 for the token of a former tenant of this id; 404 for an incarnation of which nothing was
    retained. A deleted tenant's rows may have been put aside already for the id's next tenant.
    """
    if wanted is not None:
        with suppress(PartitionMissingError):
            return await read(wanted)
    try:
        found = await read(None)
    except PartitionMissingError:
        if wanted is not None:
            raise _no_such_incarnation() from None
        state = await reading.threads.run(reading.lookup.readable, tenant_id, who)
        if state.exists:
            raise
        return await read(state.incarnation)
    if wanted not in {None, found.whose.incarnation}:
        raise _no_such_incarnation()
    reading.lookup.admit(who, found.whose)
    return found


def _no_such_incarnation() -> Problem:
    return Problem(
        404,
        "nothing was retained of this incarnation of the tenant",
        code="incarnation-not-found",
        title="No such incarnation",
    )


async def _page_of_all(reading: MessageReading, request: Request, query: MessagesQuery) -> Response:
    if query.incarnation is not None:
        raise invalid([("incarnation", "is one of a tenant's: name it with tenant_id")])
    bound = binding(_ALL, query.topic, query.order)
    cursors = reading.cursors
    beyond = None
    if query.cursor is not None:
        beyond = across.Place.decode(cursors.open(query.cursor, *bound))
    text, end = b"", None
    if topic_can_be(query.topic):
        text, end = await across.read(
            reading.page_reader,
            topic=query.topic,
            beyond=beyond,
            limit=query.limit,
            order=query.order,
        )
    more = None if end is None else cursors.seal(end.encode(), *bound)
    return json_response(
        page_json(text, next_cursor=more, follow_cursor=None), headers=link_header(request, more)
    )
