"""The journal in parts: clients archive old parts, and restore them.

The daemon writes no archive: a client reads the lines of a part, keeps them where it likes, and
then reports their digest. A part is removed only if the digest proves that no byte is missing.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Path, Query
from starlette.responses import Response

from tenantry.api.openapi import Routes
from tenantry.api.routing import Caller
from tenantry.api.schemas.common import answer, dumps, json_response
from tenantry.api.schemas.journal_parts import (
    Archived,
    Lines,
    LinesQuery,
    PartList,
    PartShown,
    PutBack,
)
from tenantry.api.services import Injected

Number: TypeAlias = Annotated[int, Path(ge=1, lt=2**31)]
"""A part's number."""

routes = Routes("events")


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
    "GET /events/parts/{part}/lines",
    "Read a part of the journal",
    Lines,
    errors=(404, 410, 422),
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
