"""Dead letters: messages that could not be stored, to be looked at, replayed or discarded."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, links, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.services import Caller, Services

_TAG = "dead letters"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve dead letters on `app`."""
    cursors, work, pool = services.cursors, services.reprocessing, services.pools.dead_letters

    @app.get(
        "/tenants/{tenant_id}/dead-letters",
        response_model=answers.DeadLetterPage,
        summary="List a tenant's dead letters",
        tags=[_TAG],
        responses={200: {"headers": links.DOCUMENTED}, **errors(400, 404, 422, 503)},
    )
    async def list_dead_letters(
        tenant_id: str, request: Request, query: Annotated[schemas.PageQuery, Query()]
    ) -> Response:
        """List messages that could not be stored, oldest first, with why, and their bytes."""
        bound = (_TAG, tenant_id)
        after = 0 if query.cursor is None else cursors.open_position(query.cursor, *bound)

        def read() -> tuple[bytes, str | None]:
            lookup.existing(services.directory, tenant_id)
            page, more = services.letters.page(tenant_id, after=after, limit=query.limit)
            end = cursors.seal_position(page[-1].position, *bound) if more else None
            shown = [render.dead_letter(letter) for letter in page]
            return render.dumps({"data": shown, "next_cursor": end}), end

        body, end = await services.pools.reads.run(read)
        return render.json_response(body, headers=links.next_page(request, end))

    @app.post(
        "/tenants/{tenant_id}/dead-letters/replay",
        status_code=202,
        response_model=answers.Replayed,
        summary="Replay dead letters",
        tags=[_TAG],
        responses=errors(404, 409, 503, body=True),
    )
    async def replay_dead_letters(
        tenant_id: str, wanted: schemas.WhichLetters, caller: Caller
    ) -> Response:
        """Publish dead letters to their own topic and partition again, marked as replayed.

        What is stored by then is stored once, however often it is replayed. A letter that fails
        again becomes another dead letter. A call takes a minute at most: call again for the rest
        of very many.
        """

        def run() -> int:
            lookup.publishable(services.directory, tenant_id)
            return work.replay(tenant_id, wanted.chosen, caller)

        return render.json_response(render.dumps({"replayed": await pool.run(run)}), 202)

    @app.delete(
        "/tenants/{tenant_id}/dead-letters",
        response_model=answers.Discarded,
        summary="Discard dead letters",
        tags=[_TAG],
        responses=errors(404, 409, 503, body=True),
    )
    async def discard_dead_letters(
        tenant_id: str, wanted: schemas.WhichLetters, caller: Caller
    ) -> Response:
        """Throw dead letters away for good; the journal keeps that they were."""

        def run() -> int:
            lookup.existing(services.directory, tenant_id)
            return work.discard(tenant_id, wanted.chosen, caller)

        return render.json_response(render.dumps({"discarded": await pool.run(run)}))
