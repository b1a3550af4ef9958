"""Dead letters: messages that could not be stored; they are shown, replayed or discarded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.paging import link_header
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
from tenantry.api.services import Injected, Services
from tenantry.dead_letters.port import DeadLetter, DeadLetterIndex, Selection
from tenantry.http.problems import Problem

_TAG = "dead letters"

SHORTEST_TURN: Final = 1.0
"""Seconds that a call works for, at least, before it leaves the rest to a later call.

It does so only while another tenant's call waits for a thread; a call waits a few seconds at most.
"""

routes = Routes(_TAG)


@routes(
    "GET /tenants/{tenant_id}/dead-letters",
    "List a tenant's dead letters",
    DeadLetterPage,
    errors=(400, 404, 422),
    paged=True,
)
async def list_dead_letters(
    services: Injected,
    tenant_id: str,
    request: Request,
    who: Who,
    query: Annotated[LettersQuery, Query()],
) -> Response:
    """List messages that could not be stored, oldest first, with the reasons and their bytes.

    Callers who may not see payloads get them as with `payload=false`.
    """
    bound = (_TAG, tenant_id, query.bound)
    cursors = services.cursors

    def read() -> tuple[bytes, str | None]:
        state = services.lookup.existing(tenant_id, who)
        incarnation = state.incarnation
        after = 0
        if query.cursor is not None:
            after = cursors.open_place_of(incarnation, query.cursor, *bound)
        page, more = services.dead_letters.page(
            tenant_id, which=query.which, after=after, limit=query.limit
        )
        end = cursors.seal_place(page[-1].position, incarnation, *bound) if more else None
        shown = [
            DeadLetterEntry.of(
                letter, payload=query.payload and who.payloads, ordered=state.ordered
            )
            for letter in page
        ]
        return dumps(DeadLetterPage(data=shown, next_cursor=end)), end

    body, end = await services.pools.reads.run(read)
    return json_response(body, headers=link_header(request, end))


@routes(
    "GET /tenants/{tenant_id}/dead-letters/{letter_id}",
    "Show a dead letter",
    DeadLetterEntry,
    errors=(404, 409, 422),
)
async def show_dead_letter(
    services: Injected,
    tenant_id: str,
    letter_id: str,
    who: Who,
    query: Annotated[LetterQuery, Query()],
) -> Response:
    """Show a dead letter by its `letter_id`, or by its message's id if no other letter has it.

    Callers who may not see payloads get it as with `payload=false`.
    """

    def read() -> bytes:
        ordered = services.lookup.existing(tenant_id, who).ordered
        letter = _the_letter(services.dead_letters, tenant_id, letter_id)
        shown = query.payload and who.payloads
        return dumps(DeadLetterEntry.of(letter, payload=shown, ordered=ordered))

    return json_response(await services.pools.reads.run(read))


@routes(
    "POST /tenants/{tenant_id}/dead-letters/replay",
    "Replay dead letters",
    Replayed | LettersPreview,
    errors=(404, 409),
    status=202,
)
async def replay_dead_letters(
    services: Injected, tenant_id: str, wanted: LettersToReplay, caller: Caller, who: Who
) -> Response:
    """Publish dead letters to their own topic and partition again, marked as replayed.

    A message is stored once, however often it is replayed. A letter that fails again is listed
    again, with its `replays` counted; one that has failed too often takes `force`. A call takes
    a minute at most: `complete` is false if letters are left.
    """

    def run() -> Answer:
        done = services.reprocessing.replay(
            tenant_id,
            wanted.which,
            caller,
            most=wanted.limit,
            force=wanted.force,
            stopping=_giving_way(services),
        )
        return Replayed.of(done)

    check = partial(services.lookup.publishable, tenant_id, who)
    return json_response(await _work_off(services, tenant_id, wanted, check, run), 202)


@routes(
    "DELETE /tenants/{tenant_id}/dead-letters",
    "Discard dead letters",
    Discarded | LettersPreview,
    errors=(404, 409),
)
async def discard_dead_letters(
    services: Injected, tenant_id: str, wanted: LettersToDiscard, caller: Caller, who: Who
) -> Response:
    """Throw dead letters away for good; the journal records that they existed.

    A call takes a minute at most, and a second while other tenants' calls wait: `complete` is
    false if letters are left.
    """

    def run() -> Answer:
        done = services.reprocessing.discard(
            tenant_id, wanted.which, caller, most=wanted.limit, stopping=_giving_way(services)
        )
        return Discarded.of(done)

    check = partial(services.lookup.existing, tenant_id, who)
    return json_response(await _work_off(services, tenant_id, wanted, check, run))


def _giving_way(services: Services) -> Callable[[], bool]:
    """Return a check that says when a call has to stop for another tenant's, which waits.

    Its first answer is always no, so that a call that checks before each step takes one at least.
    """
    until = time.monotonic() + SHORTEST_TURN
    pool, steps = services.pools.dead_letters, itertools.count()
    return lambda: next(steps) > 0 and pool.wanted and time.monotonic() >= until


async def _work_off(
    services: Services,
    tenant_id: str,
    wanted: LettersToReplay | LettersToDiscard,
    check: Callable[[], object],
    run: Callable[[], Answer],
) -> bytes:
    """Do the work, or with `dry_run` report what would be done."""

    def preview() -> bytes:
        check()
        return dumps(LettersPreview.of(services.reprocessing.preview(tenant_id, wanted.which)))

    def work() -> bytes:
        check()
        return dumps(run())

    if wanted.dry_run:
        return await services.pools.reads.run(preview)
    # Checked first, so that only permitted calls wait for a turn; and checked again in the turn.
    await services.pools.reads.run(check)
    return await services.turns.run(tenant_id, services.pools.dead_letters, work)


def _the_letter(letters: DeadLetterIndex, tenant_id: str, name: str) -> DeadLetter:
    """Find one letter by its own id or its message's. Blocks. Raises `Problem`: 404, 409."""
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
