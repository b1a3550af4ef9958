"""Tenants: created (once for each idempotency key), shown, changed, deleted."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated
from uuid import uuid4

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import errors, idempotency, tenant_list
from tenantry.api.idempotency import Once
from tenantry.api.moving import Move
from tenantry.api.openapi import Routes
from tenantry.api.paging import link_header
from tenantry.api.routing import Caller, Who, checked_id
from tenantry.api.schemas.common import answer, dumps, json_response, parse_time
from tenantry.api.schemas.credentials import SqlAccessData
from tenantry.api.schemas.daemon import Destination
from tenantry.api.schemas.statistics import StatisticsQuery, TenantStatistics
from tenantry.api.schemas.tenants import (
    Concurrency,
    CreatedTenant,
    DeletionQuery,
    LimitsChange,
    NewTopics,
    Tenant,
    TenantCreation,
    TenantPage,
    TenantQuery,
    TenantsQuery,
    TenantWithCredentials,
    topics_of,
)
from tenantry.api.services import Injected, Services
from tenantry.control.port import Outcome
from tenantry.domain import names
from tenantry.domain.commands import (
    AddTopics,
    ChangeLimits,
    CreateTenant,
    GrantConsumerAccess,
    GrantSqlAccess,
    OperatorCommand,
    PauseTenant,
    RequestDeletion,
    ResizeWorkers,
    ResumeTenant,
    RevokeConsumerAccess,
    RevokeSqlAccess,
    RotateCredentials,
    TenantExistsError,
)
from tenantry.domain.events import ProvisioningAbandoned, TenantCreated
from tenantry.domain.tenant import Lifecycle, TenantState
from tenantry.http.problems import RETRY_AFTER_SECONDS, Problem, invalid
from tenantry.http.tokens import Principal, Scope
from tenantry.journal.port import EventsArchivedError, Metadata

_TENANTS = "tenants"
_MAX_VERSION_DIGITS = 9
_LOCATION = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}
_COMMAND_ERRORS = (404, 409, 504)

routes = Routes(_TENANTS)


@routes(
    "POST /tenants",
    "Create a tenant",
    CreatedTenant,
    errors=(409, 504),
    status=201,
    success={
        "description": "It exists and consumes. The credentials are shown this once.",
        "headers": _LOCATION | idempotency.REPLAYED,
    },
)
async def create_tenant(
    services: Injected,
    wanted: TenantCreation,
    caller: Caller,
    request: Request,
    idempotency_key: idempotency.Key = None,
) -> Response:
    """Make a tenant with its stream, queues, broker user and partition, and consume.

    If a step fails, nothing is left behind. After no answer, or a 503 or 504, call again with
    the same `Idempotency-Key`: if the tenant was made by then, the answer is without its
    `credentials`, which are kept nowhere. Rotate them to get new ones.
    """
    once = None
    if idempotency_key is not None:
        once = Once("POST /tenants", idempotency_key, await request.body())
    outcome, replayed = await services.pools.commands.run(_create, services, wanted, caller, once)
    headers = {"Location": f"/tenants/{outcome.tenant.tenant_id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    owned = services.cluster.owned.get(outcome.tenant.tenant_id)
    return answer(CreatedTenant.of_outcome(outcome, owned), 201, headers)


@routes("GET /tenants", "List tenants", TenantPage, errors=(400, 422), paged=True)
async def list_tenants(
    services: Injected, request: Request, query: Annotated[TenantsQuery, Query()]
) -> Response:
    """List the tenants that exist, by id; or search them, or sort them otherwise.

    Other nodes are asked for the figures of their tenants, for two seconds at most. If searched or
    sorted otherwise, a page begins at an offset: a tenant whose place has changed meanwhile may be
    shown twice, or not at all.
    """
    cursors = services.cursors
    plain = query.sort == "id" and not query.search
    bound = (_TENANTS,) if plain else (_TENANTS, query.sort, query.search)
    place = None if query.cursor is None else cursors.open(query.cursor, *bound)
    if plain:
        after = None if place is None else place.decode()
        part = await tenant_list.by_id(services, request.scope, after, query.limit)
        last = part.states[-1].tenant_id.encode() if part.more else b""
    else:
        begin = 0 if place is None else int.from_bytes(place)
        part = await tenant_list.sorted_by(services, request.scope, query, begin)
        last = (begin + query.limit).to_bytes(8)
    end = cursors.seal(last, *bound) if part.more else None

    def write() -> bytes:
        shown = []
        for state in part.states:
            owned = part.owners.get(state.tenant_id)
            runtime = part.told.runtimes.get(state.tenant_id)
            shown.append(Tenant.of(state, runtime, owned, known=part.told.knows(owned)))
        return dumps(TenantPage(data=shown, next_cursor=end, silent_nodes=part.told.silent))

    return json_response(await services.pools.reads.run(write), headers=link_header(request, end))


@routes("GET /tenants/{tenant_id}", "Show a tenant, now or in the past", Tenant, errors=(404, 422))
async def show_tenant(
    services: Injected, tenant_id: str, who: Who, query: Annotated[TenantQuery, Query()]
) -> Response:
    """Show a tenant as it is, or with `at` as of a time or a version, deleted ones too."""

    def read() -> bytes:
        if query.at is not None:
            return dumps(Tenant.past(_past(services, tenant_id, query.at, who)))
        now = services.lookup.existing(tenant_id, who)
        owned = services.cluster.owned.get(tenant_id)
        if owned is None:
            owned = services.cluster.owners([tenant_id]).get(tenant_id)
        runtime = services.control.runtime(tenant_id)
        # Another node's tenant comes here only if the request could not be handed on to that node.
        known = owned is None or owned.node in (None, services.cluster.name)
        to_operator = who.scope is not Scope.TENANT
        return dumps(Tenant.of(now, runtime, owned, known=known, to_operator=to_operator))

    return json_response(await services.pools.reads.run(read))


@routes(
    "DELETE /tenants/{tenant_id}",
    "Delete a tenant",
    None,
    errors=(422, *_COMMAND_ERRORS),
    status=204,
)
async def delete_tenant(
    services: Injected, tenant_id: str, query: Annotated[DeletionQuery, Query()], caller: Caller
) -> Response:
    """Finish what is in flight, then remove the queues, the user and the messages.

    The journal keeps what happened, and how many messages were dropped.
    """
    command = RequestDeletion(tenant_id=checked_id(tenant_id), retain=query.retain)
    await _execute(services, command, caller)
    return Response(status_code=204)


@routes(
    "PUT /tenants/{tenant_id}/config/concurrency",
    "Resize a tenant's workers",
    Tenant,
    errors=_COMMAND_ERRORS,
)
async def resize(
    services: Injected, tenant_id: str, wanted: Concurrency, caller: Caller
) -> Response:
    """Set how many workers may store messages at once: in force at once, losing nothing."""
    command = ResizeWorkers(tenant_id=checked_id(tenant_id), workers=wanted.workers)
    return await _carry_out(services, command, caller)


@routes(
    "PUT /tenants/{tenant_id}/limits", "Change a tenant's limits", Tenant, errors=_COMMAND_ERRORS
)
async def change_limits(
    services: Injected, tenant_id: str, wanted: LimitsChange, caller: Caller
) -> Response:
    """Change some limits of a tenant: what is left out stays, null lifts one. In force at once."""
    command = ChangeLimits(tenant_id=checked_id(tenant_id), changes=wanted.changes())
    return await _carry_out(services, command, caller)


@routes("POST /tenants/{tenant_id}/pause", "Pause a tenant", Tenant, errors=_COMMAND_ERRORS)
async def pause(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Stop consuming; messages wait in the queues. A paused tenant stays paused."""
    return await _carry_out(services, PauseTenant(tenant_id=checked_id(tenant_id)), caller)


@routes("POST /tenants/{tenant_id}/resume", "Resume a tenant", Tenant, errors=_COMMAND_ERRORS)
async def resume(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Consume again after a pause, or revive a tenant the daemon has parked."""
    return await _carry_out(services, ResumeTenant(tenant_id=checked_id(tenant_id)), caller)


@routes(
    "POST /tenants/{tenant_id}/credentials/rotate",
    "Rotate a tenant's credentials",
    TenantWithCredentials,
    errors=_COMMAND_ERRORS,
)
async def rotate_credentials(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Replace the password of the tenant's broker user. It is shown this once."""
    return await _carry_out(services, RotateCredentials(tenant_id=checked_id(tenant_id)), caller)


@routes(
    "POST /tenants/{tenant_id}/sql-access",
    "Let a tenant read its messages with SQL",
    SqlAccessData,
    errors=_COMMAND_ERRORS,
)
async def grant_sql_access(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Give the tenant a database role that reads its own rows of `public.messages` only.

    A role it has already gets a new password. The password is shown this once.
    """
    command = GrantSqlAccess(tenant_id=checked_id(tenant_id))
    return answer(SqlAccessData.of(await _execute(services, command, caller)))


@routes(
    "DELETE /tenants/{tenant_id}/sql-access",
    "Revoke a tenant's SQL access",
    None,
    errors=_COMMAND_ERRORS,
    status=204,
)
async def revoke_sql_access(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """End the sessions of the tenant's database role, if it has one, and drop it."""
    await _execute(services, RevokeSqlAccess(tenant_id=checked_id(tenant_id)), caller)
    return Response(status_code=204)


@routes(
    "POST /tenants/{tenant_id}/consumer-access",
    "Let a tenant's own consumers read its topics",
    TenantWithCredentials,
    errors=_COMMAND_ERRORS,
)
async def grant_consumer_access(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Give the tenant a broker user that reads copies of what is published from now on.

    Storing messages does not depend on it. A user it has already gets a new password. The password
    is shown this once.
    """
    return await _carry_out(services, GrantConsumerAccess(tenant_id=checked_id(tenant_id)), caller)


@routes(
    "DELETE /tenants/{tenant_id}/consumer-access",
    "Revoke a tenant's consumer access",
    None,
    errors=_COMMAND_ERRORS,
    status=204,
)
async def revoke_consumer_access(services: Injected, tenant_id: str, caller: Caller) -> Response:
    """Delete the user that reads the tenant's topics, if there is one, and what waits for it."""
    await _execute(services, RevokeConsumerAccess(tenant_id=checked_id(tenant_id)), caller)
    return Response(status_code=204)


@routes(
    "POST /tenants/{tenant_id}/topics", "Add topics to a tenant", Tenant, errors=_COMMAND_ERRORS
)
async def add_topics(
    services: Injected, tenant_id: str, wanted: NewTopics, caller: Caller
) -> Response:
    """Give the tenant more topics; those given by name alone get its usual number of partitions.

    A topic that exists keeps its partitions and ordering; if the call gives any, they must match.
    """
    command = AddTopics(tenant_id=checked_id(tenant_id), topics=topics_of(wanted.topics))
    return await _carry_out(services, command, caller)


@routes(
    "POST /tenants/{tenant_id}/move",
    "Move a tenant to another node",
    Tenant,
    errors=_COMMAND_ERRORS,
)
async def move(
    services: Injected,
    tenant_id: str,
    wanted: Destination,
    *,
    who: Who,
    caller: Caller,
    request: Request,
) -> Response:
    """Have a node take a tenant over, in order, and keep it there; answers once it consumes there.

    With `node` null, placement chooses again, and the answer does not wait. If the node is lost,
    the tenant works elsewhere until it is back.
    """
    moving = Move(services, request.scope)
    return answer(await moving.run(checked_id(tenant_id), wanted.node, who, caller))


async def _execute(services: Services, command: OperatorCommand, caller: Metadata) -> Outcome:
    return await services.pools.commands.run(
        services.control.execute, command, metadata=caller, timeout=services.command_timeout
    )


async def _carry_out(services: Services, command: OperatorCommand, caller: Metadata) -> Response:
    outcome = await _execute(services, command, caller)
    owned = services.cluster.owned.get(outcome.tenant.tenant_id)
    return answer(CreatedTenant.of_outcome(outcome, owned))


def _create(
    services: Services, wanted: TenantCreation, caller: Metadata, once: Once | None
) -> tuple[Outcome, bool]:
    """Create the tenant, or find it created by the same call before. Blocks."""
    tenant_id = wanted.id
    if tenant_id is None:
        tenant_id = str(uuid4()) if once is None else once.id()
    if once is not None:
        once.claim(services.idempotency)
        caller = replace(caller, causation_id=once.cause)
        if (made := _made_before(services, tenant_id, once)) is not None:
            return made, True
    command = CreateTenant(
        tenant_id=tenant_id,
        name=wanted.name,
        workers=services.default_workers() if wanted.workers is None else wanted.workers,
        topics=topics_of(wanted.topics),
        partitions=wanted.partitions,
    )
    try:
        outcome = services.control.execute(
            command, metadata=caller, timeout=services.command_timeout
        )
    except TenantExistsError:
        # The same call may have come in twice at once.
        if once is None or (made := _made_before(services, tenant_id, once)) is None:
            raise
        return made, True
    return outcome, False


def _made_before(services: Services, tenant_id: str, once: Once) -> Outcome | None:
    """Find the tenant that this very call has made, by the cause recorded with its events."""
    if not names.is_tenant_id(tenant_id):
        return None
    state = services.directory.get(tenant_id)
    if state is None:
        return None
    made = mine = False
    for recorded in services.journal.read_stream(names.journal_stream(tenant_id)):
        match recorded.event:
            case TenantCreated():
                mine = recorded.metadata.causation_id == once.cause
                made = made or mine
            case ProvisioningAbandoned() if mine:
                made = mine = False
            case _:
                pass
    if not made:
        return None
    if not mine or not state.exists or state.lifecycle is Lifecycle.DELETING:
        raise Problem(
            409,
            "the tenant that was made with this idempotency key has been deleted since",
            code="tenant-deleted-since",
            title="Deleted since",
        )
    if state.lifecycle is Lifecycle.PROVISIONING:
        raise Problem(
            409,
            "the same call is being carried out; ask again",
            code="idempotency-in-progress",
            title="Being carried out",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    return Outcome(tenant=state, runtime=services.control.runtime(tenant_id))


def _past(services: Services, tenant_id: str, at: str, who: Principal) -> TenantState:
    """Find a tenant as of a time or version. Blocks; 401, 404 before it was created, 410, 422.

    A tenant sees its own past only, not that of a former tenant of its id.
    """
    checked_id(tenant_id)
    own = services.lookup.known(tenant_id, who).incarnation if who.scope is Scope.TENANT else None
    try:
        state = _as_of(services, tenant_id, at)
    except EventsArchivedError as error:
        raise errors.archived(error, who) from error
    if state is None or own not in {None, state.incarnation}:
        raise Problem(
            404, "there was no such tenant then", code="tenant-not-found", title="No such tenant"
        )
    return state


def _as_of(services: Services, tenant_id: str, at: str) -> TenantState | None:
    if at.isascii() and at.isdecimal():
        digits = at.lstrip("0")
        # No tenant has a billion events, and the database's numbers end somewhere.
        fits = 0 < len(digits) <= _MAX_VERSION_DIGITS
        return services.directory.as_of_version(tenant_id, int(digits)) if fits else None
    moment = parse_time(at)
    if moment is None:
        raise invalid([("at", "must be an RFC 3339 time with a zone, or a version number")])
    return services.directory.as_of_time(tenant_id, moment)


@routes(
    "GET /tenants/{tenant_id}/stats", "Show a tenant's statistics", TenantStatistics,
    errors=(404, 422),
)  # fmt: skip
async def show_statistics(
    services: Injected, tenant_id: str, who: Who, query: Annotated[StatisticsQuery, Query()]
) -> Response:
    """Show what became of a tenant's messages over time: rates, latency, backlog.

    They are kept for a day by minutes, and for a week by hours, over restarts and moves.
    """

    def read() -> bytes:
        services.lookup.existing(tenant_id, who)
        series = services.statistics.series(tenant_id, query.window)
        return dumps(TenantStatistics.of(tenant_id, series))

    return json_response(await services.pools.reads.run(read))
