"""The journal, to be read and followed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.openapi import error_answers
from tenantry.api.paging import LINK_HEADER, link_header
from tenantry.api.routing import Who
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.schemas.events import EventPage, EventsQuery, JournalEntry
from tenantry.api.services import Services
from tenantry.domain import names
from tenantry.domain.events import TenantCreated
from tenantry.domain.tenant import TenantState
from tenantry.http.auth import connection_of
from tenantry.http.tokens import Scope
from tenantry.journal.port import EventStore, RecordedEvent

_TAG = "events"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve the journal on `app`."""
    journal, cursors = services.journal, services.cursors

    async def read(
        request: Request,
        query: EventsQuery,
        tenant_id: str | None,
        read_after: Callable[[int], list[RecordedEvent]],
        incarnation: int | None = None,
    ) -> Response:
        binding = (_TAG, tenant_id or "*")
        after = 0
        if query.cursor is not None and incarnation is None:
            after = cursors.open_position(query.cursor, *binding)
        elif query.cursor is not None and incarnation is not None:
            after = cursors.open_place_of(incarnation, query.cursor, *binding)
        found = await services.tail.page(
            lambda: read_after(after),
            pool=services.pools.reads,
            tenant_id=tenant_id,
            after=after,
            timeout=query.wait,
            closing=connection_of(request.scope).closing,
        )

        last = found[-1].position if found else after
        end = cursors.seal_place(last, incarnation or 1, *binding)

        def write() -> bytes:
            return dumps(EventPage(data=[JournalEntry.of(one) for one in found], next_cursor=end))

        # The cursor is always there, to come back with; the link only where there may be more now.
        more = end if len(found) == query.limit else None
        return json_response(
            await services.pools.reads.run(write), headers=link_header(request, more)
        )

    @app.get(
        "/events",
        response_model=EventPage,
        summary="Read the journal",
        tags=[_TAG],
        responses={200: {"headers": LINK_HEADER}, **error_answers(400, 422, 503)},
    )
    async def read_events(request: Request, query: Annotated[EventsQuery, Query()]) -> Response:
        """Read every event, oldest first, and wait for more if asked."""
        return await read(
            request, query, None, lambda after: journal.read_all(after=after, limit=query.limit)
        )

    @app.get(
        "/tenants/{tenant_id}/events",
        response_model=EventPage,
        summary="Read a tenant's events",
        tags=[_TAG],
        responses={200: {"headers": LINK_HEADER}, **error_answers(400, 404, 422, 503)},
    )
    async def read_tenant_events(
        tenant_id: str,
        request: Request,
        who: Who,
        query: Annotated[EventsQuery, Query()],
    ) -> Response:
        """Read a tenant's life and dead letters, oldest first, deleted tenants' too.

        An admin reads of all tenants that have had the id, a tenant of itself alone.
        """
        run = services.pools.reads.run
        state = await run(services.lookup.known, tenant_id, who)
        if who.scope is Scope.TENANT:
            first = await run(_first_position, journal, state) if state.incarnation > 1 else 0
            return await read(
                request,
                query,
                tenant_id,
                lambda after: _own(
                    state,
                    journal.read_tenant(tenant_id, after=max(after, first), limit=query.limit),
                ),
                state.incarnation,
            )
        return await read(
            request,
            query,
            tenant_id,
            lambda after: journal.read_tenant(tenant_id, after=after, limit=query.limit),
        )


def _first_position(journal: EventStore, state: TenantState) -> int:
    """Find the position just before a tenant's own creation. Blocks."""
    stream = names.journal_stream(state.tenant_id)
    (created,) = journal.read_stream(stream, after=state.created_version - 1, limit=1)
    return created.position - 1


def _own(state: TenantState, found: list[RecordedEvent]) -> list[RecordedEvent]:
    """Keep what is the tenant's own, and not the next one's who has its id."""

    def is_own(one: RecordedEvent) -> bool:
        return not isinstance(one.event, TenantCreated) or one.version <= state.created_version

    return list(takewhile(is_own, found))
