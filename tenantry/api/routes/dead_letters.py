"""Dead letters: messages that could not be stored, to be looked at, replayed or discarded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.openapi import error_answers
from tenantry.api.paging import LINK_HEADER, link_header
from tenantry.api.routing import Caller, Who
from tenantry.api.schemas.common import Answer, dumps, json_response
from tenantry.api.schemas.dead_letters import (
    DeadLetterEntry,
    DeadLetterPage,
    Discarded,
    LetterQuery,
    LettersPreview,
    LettersQuery,
    LettersToDiscard,
    LettersToReplay,
    Replayed,
)
from tenantry.api.services import Services
from tenantry.dead_letters.port import DeadLetter, DeadLetterIndex, Selection
from tenantry.http.problems import Problem

_TAG = "dead letters"


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve dead letters on `app`."""
    cursors, work = services.cursors, services.reprocessing

    async def work_off(
        tenant_id: str, check: Callable[[], object], run: Callable[[], Answer]
    ) -> bytes:
        # Only who may do it waits for a turn; and what holds by then is looked at again.
        await services.pools.reads.run(check)

        def checked() -> Answer:
            check()
            return run()

        return dumps(await services.turns.run(tenant_id, services.pools.dead_letters, checked))

    async def preview(tenant_id: str, check: Callable[[], object], which: Selection) -> bytes:
        def run() -> bytes:
            check()
            return dumps(LettersPreview.of(work.preview(tenant_id, which)))

        return await services.pools.reads.run(run)

    @app.get(
        "/tenants/{tenant_id}/dead-letters",
        response_model=DeadLetterPage,
        summary="List a tenant's dead letters",
        tags=[_TAG],
        responses={200: {"headers": LINK_HEADER}, **error_answers(400, 404, 422, 503)},
    )
    async def list_dead_letters(
        tenant_id: str,
        request: Request,
        who: Who,
        query: Annotated[LettersQuery, Query()],
    ) -> Response:
        """List messages that could not be stored, oldest first, with why, and their bytes."""
        bound = (_TAG, tenant_id, query.bound)

        def read() -> tuple[bytes, str | None]:
            incarnation = services.lookup.existing(tenant_id, who).incarnation
            after = 0
            if query.cursor is not None:
                after = cursors.open_place_of(incarnation, query.cursor, *bound)
            page, more = services.dead_letters.page(
                tenant_id, which=query.which, after=after, limit=query.limit
            )
            end = cursors.seal_place(page[-1].position, incarnation, *bound) if more else None
            shown = [DeadLetterEntry.of(letter, payload=query.payload) for letter in page]
            return dumps(DeadLetterPage(data=shown, next_cursor=end)), end

        body, end = await services.pools.reads.run(read)
        return json_response(body, headers=link_header(request, end))

    @app.get(
        "/tenants/{tenant_id}/dead-letters/{letter_id}",
        response_model=DeadLetterEntry,
        summary="Show a dead letter",
        tags=[_TAG],
        responses=error_answers(404, 409, 422, 503),
    )
    async def show_dead_letter(
        tenant_id: str,
        letter_id: str,
        who: Who,
        query: Annotated[LetterQuery, Query()],
    ) -> Response:
        """Show a dead letter by its `letter_id`, or by its message's id where that is one only."""

        def read() -> bytes:
            services.lookup.existing(tenant_id, who)
            letter = _the_letter(services.dead_letters, tenant_id, letter_id)
            return dumps(DeadLetterEntry.of(letter, payload=query.payload))

        return json_response(await services.pools.reads.run(read))

    @app.post(
        "/tenants/{tenant_id}/dead-letters/replay",
        status_code=202,
        response_model=Replayed | LettersPreview,
        summary="Replay dead letters",
        tags=[_TAG],
        responses=error_answers(404, 409, 503, body=True),
    )
    async def replay_dead_letters(
        tenant_id: str, wanted: LettersToReplay, caller: Caller, who: Who
    ) -> Response:
        """Publish dead letters to their own topic and partition again, marked as replayed.

        What is stored by then is stored once, however often it is replayed. A letter that fails
        again is listed again, with its `replays` counted; one that has failed too often takes
        `force`. A call takes a minute at most: `complete` is false where letters are left.
        """

        def run() -> Answer:
            done = work.replay(
                tenant_id, wanted.which, caller, most=wanted.limit, force=wanted.force
            )
            return Replayed.of(done)

        check = partial(services.lookup.publishable, tenant_id, who)
        if wanted.dry_run:
            return json_response(await preview(tenant_id, check, wanted.which), 202)
        return json_response(await work_off(tenant_id, check, run), 202)

    @app.delete(
        "/tenants/{tenant_id}/dead-letters",
        response_model=Discarded | LettersPreview,
        summary="Discard dead letters",
        tags=[_TAG],
        responses=error_answers(404, 409, 503, body=True),
    )
    async def discard_dead_letters(
        tenant_id: str, wanted: LettersToDiscard, caller: Caller, who: Who
    ) -> Response:
        """Throw dead letters away for good; the journal keeps that they were.

        A call takes a minute at most: `complete` is false where letters are left.
        """

        def run() -> Answer:
            done = work.discard(tenant_id, wanted.which, caller, most=wanted.limit)
            return Discarded.of(done)

        check = partial(services.lookup.existing, tenant_id, who)
        if wanted.dry_run:
            return json_response(await preview(tenant_id, check, wanted.which))
        return json_response(await work_off(tenant_id, check, run))


def _the_letter(letters: DeadLetterIndex, tenant_id: str, name: str) -> DeadLetter:
    """Find one letter by an id of its own, or of its message. Blocks; 404, 409."""
    found, more = letters.page(tenant_id, which=Selection(names=frozenset((name,))), limit=50)
    own = [letter for letter in found if str(letter.id) == name]
    if not found:
        raise Problem(
            404,
            "there is no such dead letter",
            code="dead-letter-not-found",
            title="No such dead letter",
        )
    if len(own or found) > 1 or (more and not own):
        raise Problem(
            409,
            "several dead letters have this message id; name one by its letter_id",
            code="ambiguous-letter",
            title="Which dead letter?",
            extra={"letter_ids": [str(letter.id) for letter in found]},
        )
    return (own or found)[0]
