"""Messages: published with confirms."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, Protocol

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, idempotency, jsonroute, lookup, render, schemas
from tenantry.api.documented import errors
from tenantry.api.idempotency import Once
from tenantry.api.lanes import Lane
from tenantry.api.partitions import Router
from tenantry.api.services import Services, Who
from tenantry.broker.port import Outgoing, Publishing
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.http import rawjson
from tenantry.http.auth import principal_of
from tenantry.http.pool import Pool
from tenantry.http.problems import Problem
from tenantry.projections.port import TenantDirectory
from tenantry.uuids import random_uuids

_TAG: Final = "messages"
_CONTENT_TYPE: Final = "application/json"
_PATH: Final = re.compile("/tenants/([^/]+)/messages")
_PUBLICATIONS: Final[TypeAdapter[schemas.Publications]] = TypeAdapter(schemas.Publications)


class Publishers(Protocol):
    """What messages are published with; `publish_timeout` is in seconds."""

    @property
    def directory(self) -> TenantDirectory:
        """Tells which tenants take messages, and their topics."""

    @property
    def publishing(self) -> Publishing:
        """Takes them to the broker."""

    @property
    def router(self) -> Router:
        """Tells which partition a message goes to."""

    @property
    def publish_timeout(self) -> float:
        """How long the broker has to confirm."""

    @property
    def publish_threads(self) -> Pool:
        """Threads that wait for the broker."""


def lane(publishers: Publishers) -> Lane:
    """Give the short way to publishing, for calls without an idempotency key."""

    async def serve(request: Request, match: re.Match[str], body: bytes) -> Response | None:
        if idempotency.HEADER in request.headers or not jsonroute.is_json(request):
            return None
        try:
            publications = _PUBLICATIONS.validate_python(rawjson.loads(body))
        except (json.JSONDecodeError, ValidationError):
            return None
        several = publications if isinstance(publications, list) else [publications]
        who = principal_of(request.scope)

        def send() -> bytes:
            payloads = rawjson.members(body, "payload")
            state = lookup.publishable(publishers.directory, match[1], who)
            return _publish(publishers, _messages(publishers, state, several, payloads, None))

        return render.json_response(await publishers.publish_threads.run(send), 202)

    return Lane(method="POST", path=_PATH, serve=serve)


def add_routes(app: FastAPI, services: Services) -> None:
    """Serve messages on `app`."""

    @app.post(
        "/tenants/{tenant_id}/messages",
        status_code=202,
        response_model=answers.Accepted,
        summary="Publish messages",
        tags=[_TAG],
        responses=errors(404, 409, 503, body=True),
    )
    async def publish(
        tenant_id: str,
        publications: schemas.Publications,
        request: Request,
        who: Who,
        idempotency_key: idempotency.Key = None,
    ) -> Response:
        """Publish one message or a list of them; answers once the broker has confirmed all.

        After a 503 some may have been taken: send all again, with the same ids or the same
        `Idempotency-Key`, and each is stored once. With a key, ids that are left out are made
        from it, so that a repeated call has the same answer.
        """
        several = publications if isinstance(publications, list) else [publications]
        body = await request.body()

        def send() -> bytes:
            payloads = rawjson.members(body, "payload")
            state = lookup.publishable(services.directory, tenant_id, who)
            once = None if idempotency_key is None else Once(_call(state), idempotency_key, body)
            messages = _messages(services, state, several, payloads, once)
            if once is not None:
                once.claim(services.idempotency)
            return _publish(services, messages)

        return render.json_response(await services.publish_threads.run(send), 202)


def _publish(publishers: Publishers, messages: Sequence[Outgoing]) -> bytes:
    """Publish and wait for the broker; the answer. Blocks."""
    publishers.publishing.publish(messages, timeout=publishers.publish_timeout)
    return render.dumps({"ids": [one.message_id for one in messages]})


def _call(state: TenantState) -> str:
    """Name a call that a key is for: a key of a former tenant of the id is not this one's."""
    call = f"POST /tenants/{state.tenant_id}/messages"
    return call if state.incarnation == 1 else f"{call} {state.incarnation}"


def _messages(
    services: Publishers,
    state: TenantState,
    publications: Sequence[schemas.Publication],
    payloads: Sequence[bytes],
    once: Once | None,
) -> list[Outgoing]:
    """Make the messages a body asks for; `publications` and `payloads` are what was read of it."""
    exchange = names.exchange_name(state.tenant_id)
    if once is None:
        ids = random_uuids(len(publications))
    else:
        ids = [once.id(number) for number in range(len(publications))]
    messages = []
    for one, payload, new_id in zip(publications, payloads, ids, strict=True):
        topic = names.DEFAULT_TOPIC if one.topic is None else one.topic
        if topic != names.DEFAULT_TOPIC and topic not in state.topics:
            raise Problem(
                404,
                f"tenant {state.tenant_id!r} has no topic {topic[:80]!r}",
                code="topic-not-found",
                title="No such topic",
            )
        messages.append(
            Outgoing(
                exchange=exchange,
                routing_key=services.router.routing_key(
                    state.tenant_id, topic, state.partitions, one.key
                ),
                body=payload,
                message_id=one.id or new_id,
                content_type=_CONTENT_TYPE,
            )
        )
    return messages
