"""The journal, to be read and followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.connection import connection_of
from tenantry.api.documented import errors
from tenantry.api.services import Services
from tenantry.journal.port import RecordedEvent

_TAG = "events"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve the journal on `app`."""
    journal, cursors = services.journal, services.cursors

    async def answer(
        request: Request,
        query: schemas.EventsQuery,
        tenant_id: str | None,
        read_after: Callable[[int], list[RecordedEvent]],
    ) -> Response:
        binding = (_TAG, tenant_id or "*")
        after = 0 if query.cursor is None else cursors.open_position(query.cursor, *binding)
        found = await services.tail.page(
            lambda: read_after(after),
            pool=services.pools.reads,
            tenant_id=tenant_id,
            after=after,
            timeout=query.wait,
            closing=connection_of(request.scope).closing,
        )

        end = cursors.seal_position(found[-1].position if found else after, *binding)

        def write() -> bytes:
            return render.dumps({"data": [render.event(one) for one in found], "next_cursor": end})

        # The cursor is always there, to come back with; the link only where there may be more now.
        more = end if len(found) == query.limit else None
        return render.json_response(
            await services.pools.reads.run(write), headers=links.next_page(request, more)
        )

    @app.get(
        "/events",
        response_model=answers.EventPage,
        summary="Read the journal",
        tags=[_TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 422, 503)},
    )
    async def read_events(
        request: Request, query: Annotated[schemas.EventsQuery, Query()]
    ) -> Response:
        """Read every event, oldest first, and wait for more if asked."""
        return await answer(
            request, query, None, lambda after: journal.read_all(after=after, limit=query.limit)
        )

    @app.get(
        "/tenants/{tenant_id}/events",
        response_model=answers.EventPage,
        summary="Read a tenant's events",
        tags=[_TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 404, 422, 503)},
    )
    async def read_tenant_events(
        tenant_id: str, request: Request, query: Annotated[schemas.EventsQuery, Query()]
    ) -> Response:
        """Read a tenant's life and dead letters, oldest first, deleted tenants' too."""
        await services.pools.reads.run(lookup.known, services.directory, tenant_id)
        return await answer(
            request,
            query,
            tenant_id,
            lambda after: journal.read_tenant(tenant_id, after=after, limit=query.limit),
        )
