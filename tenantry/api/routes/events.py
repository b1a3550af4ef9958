"""The journal, to be read and followed, and its parts, which clients archive and restore.

The daemon writes no archive: a client reads the lines of a part, keeps them where it likes, and
then reports their digest. A part is removed only if the digest proves that no byte is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Annotated, TypeAlias

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import errors
from tenantry.api.openapi import Routes
from tenantry.api.paging import link_header
from tenantry.api.routing import Caller, Who
from tenantry.api.schemas.common import answer, dumps, json_response
from tenantry.api.schemas.events import (
    Archived,
    ArchivedEvents,
    EventPage,
    EventsQuery,
    JournalEntry,
    Lines,
    LinesQuery,
    PartList,
    PartShown,
    PutBack,
)
from tenantry.api.services import Injected, Services
from tenantry.domain import names
from tenantry.domain.events import TenantCreated
from tenantry.domain.tenant import TenantState
from tenantry.http.auth import connection_of, principal_of
from tenantry.http.tokens import Scope
from tenantry.journal.port import EventsArchivedError, EventStore, RecordedEvent

_TAG = "events"

routes = Routes(_TAG)

Number: TypeAlias = Annotated[int, Path(ge=1, lt=2**31)]
"""A part's number."""


@routes("GET /events", "Read the journal", EventPage, errors=(400, 410, 422), paged=True)
async def read_events(
    services: Injected, request: Request, query: Annotated[EventsQuery, Query()]
) -> Response:
    """Read every event, oldest first, and wait for more if asked.

    Without a cursor the list begins with the oldest event that is kept; `archived` says which are
    not. A cursor before that gets a 410, which says where the archive is.
    """

    def read(after: int) -> list[RecordedEvent]:
        return services.journal.read_all(after=after, limit=query.limit)

    return await _page(services, request, query, None, read)


@routes(
    "GET /tenants/{tenant_id}/events",
    "Read a tenant's events",
    EventPage,
    errors=(400, 404, 410, 422),
    paged=True,
)
async def read_tenant_events(
    services: Injected,
    tenant_id: str,
    request: Request,
    who: Who,
    query: Annotated[EventsQuery, Query()],
) -> Response:
    """Read a tenant's life and dead letters, oldest first, deleted tenants' too.

    Operators read the events of all tenants that have had the id, a tenant only its own. Archived
    events are reported as by `GET /events`.
    """
    run, journal = services.pools.reads.run, services.journal
    state = await run(services.lookup.known, tenant_id, who)

    def read(after: int) -> list[RecordedEvent]:
        return journal.read_tenant(tenant_id, after=after, limit=query.limit)

    if who.scope is not Scope.TENANT:
        return await _page(services, request, query, tenant_id, read)
    first = await run(_first_position, journal, state) if state.incarnation > 1 else 0

    def read_own(after: int) -> list[RecordedEvent]:
        return _own(state, read(max(after, first)))

    return await _page(services, request, query, tenant_id, read_own, incarnation=state.incarnation)


async def _page(
    services: Services,
    request: Request,
    query: EventsQuery,
    tenant_id: str | None,
    read_after: Callable[[int], list[RecordedEvent]],
    *,
    incarnation: int = 1,
) -> Response:
    cursors, who = services.cursors, principal_of(request.scope)
    binding = (_TAG, tenant_id or "*")
    after = 0
    if query.cursor is not None:
        after = cursors.open_place_of(incarnation, query.cursor, *binding)

    async def read_from(after: int) -> list[RecordedEvent]:
        return await services.tail.page(
            lambda: read_after(after),
            pool=services.pools.reads,
            tenant_id=tenant_id,
            after=after,
            timeout=query.wait,
            closing=connection_of(request.scope).closing,
        )

    told: dict[str, ArchivedEvents] = {}
    try:
        found = await read_from(after)
    except EventsArchivedError as error:
        # A client that comes back with a cursor would not notice the missing events.
        if query.cursor is not None:
            raise errors.archived(error, who) from error
        told["archived"] = ArchivedEvents.of(error, shown=who.scope is not Scope.TENANT)
        after = error.position
        found = await read_from(after)
    last = found[-1].position if found else after
    end = cursors.seal_place(last, incarnation, *binding)

    def write() -> bytes:
        entries = [JournalEntry.of(one) for one in found]
        return dumps(EventPage(data=entries, next_cursor=end, **told))

    # The cursor is always given, to come back with; the link only if there may be more already.
    more = end if len(found) == query.limit else None
    return json_response(await services.pools.reads.run(write), headers=link_header(request, more))


def _first_position(journal: EventStore, state: TenantState) -> int:
    """Find the position just before a tenant's own creation. Blocks."""
    stream = names.journal_stream(state.tenant_id)
    try:
        (created,) = journal.read_stream(stream, after=state.created_version - 1, limit=1)
    except EventsArchivedError:
        return 0  # it is archived, and with it all events of former tenants
    return created.position - 1


def _own(state: TenantState, found: list[RecordedEvent]) -> list[RecordedEvent]:
    """Keep the tenant's own events, and drop those of the next tenant of its id."""

    def is_own(one: RecordedEvent) -> bool:
        return not isinstance(one.event, TenantCreated) or one.version <= state.created_version

    return list(takewhile(is_own, found))


@routes("GET /events/parts", "List the parts of the journal", PartList)
async def list_parts(services: Injected) -> Response:
    """List all parts, oldest first: the archived ones, those still kept, and the open one."""
    found = await services.pools.reads.run(services.parts.listed)
    return answer(PartList(data=[PartShown.of(one) for one in found]))


@routes("POST /events/parts", "Begin another part of the journal", PartList)
async def begin_part(services: Injected) -> Response:
    """End the open part, if it has any events, so that it can be archived. Returns all parts.

    A part also ends by itself each month, and at a million events.
    """

    def begin() -> PartList:
        services.parts.begin(1)
        return PartList(data=[PartShown.of(one) for one in services.parts.listed()])

    return answer(await services.pools.commands.run(begin))


@routes(
    "GET /events/parts/{part}/lines", "Read a part of the journal", Lines, errors=(404, 410, 422)
)
async def read_lines(
    services: Injected, part: Number, query: Annotated[LinesQuery, Query()]
) -> Response:
    """Read events of a part as an archive holds them, oldest first; an empty list is the end."""

    def read() -> bytes:
        found = services.parts.lines(part, after=query.after, limit=query.limit)
        last = found[-1][0] if found else query.after
        return dumps(Lines(data=[line for _, line in found], last_position=last))

    return json_response(await services.pools.reads.run(read))


@routes(
    "POST /events/parts/{part}/archive",
    "Remove an archived part",
    PartShown,
    errors=(404, 409, 422),
)
async def archive_part(
    services: Injected, part: Number, archived: Archived, caller: Caller
) -> Response:
    """Remove the oldest kept part from the journal, once an archive has all its events.

    If `digest` is not that of the part's lines, the answer is 409 and nothing is removed. Tenants
    stay as they are: their states at its end are kept. Calls that need its events say that they
    are archived.
    """

    def archive() -> PartShown:
        done = services.parts.archive(
            part, digest=archived.digest, archive=archived.archive, metadata=caller
        )
        return PartShown.of(done)

    return answer(await services.pools.commands.run(archive))


@routes(
    "PUT /events/parts/{part}/lines", "Put an archived part back", Lines, errors=(404, 409, 422)
)
async def put_back(services: Injected, part: Number, given: PutBack) -> Response:
    """Take lines of the part that was archived last, in order; `restore` puts them in force."""

    def put() -> Lines:
        last = services.parts.put_back(part, given.lines, after=given.after)
        return Lines(data=[], last_position=last)

    return answer(await services.pools.commands.run(put))


@routes(
    "POST /events/parts/{part}/restore",
    "Restore an archived part",
    PartShown,
    errors=(404, 409, 422),
)
async def restore_part(services: Injected, part: Number, caller: Caller) -> Response:
    """Make the lines put back a part of the journal again; 409 if the archived part differs."""
    restored = await services.pools.commands.run(services.parts.restore, part, caller)
    return answer(PartShown.of(restored))
