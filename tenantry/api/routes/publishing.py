"""Messages: published with confirms."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import answers, idempotency, lookup, rawjson, render, schemas
from tenantry.api.documented import errors
from tenantry.api.idempotency import Once
from tenantry.api.problems import Problem
from tenantry.api.services import Services
from tenantry.broker.port import Outgoing
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.uuids import random_uuids

_TAG = "messages"
_CONTENT_TYPE = "application/json"


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
        idempotency_key: idempotency.Key = None,
    ) -> Response:
        """Publish one message or a list of them; answers once the broker has confirmed all.

        After a 503 some may have been taken: send all again, with the same ids or the same
        `Idempotency-Key`, and each is stored once. With a key, ids that are left out are made
        from it, so that a repeated call has the same answer.
        """
        several = publications if isinstance(publications, list) else [publications]
        body = await request.body()
        once = None
        if idempotency_key is not None:
            once = Once(f"POST /tenants/{tenant_id}/messages", idempotency_key, body)

        def send() -> bytes:
            payloads = rawjson.members(body, "payload")
            state = lookup.publishable(services.directory, tenant_id)
            messages = _outgoing(services, state, several, payloads, once)
            if once is not None:
                once.claim(services.idempotency)
            services.publishing.publish(messages, timeout=services.publish_timeout)
            return render.dumps({"ids": [one.message_id for one in messages]})

        return render.json_response(await services.pools.publishes.run(send), 202)


def _outgoing(
    services: Services,
    state: TenantState,
    publications: Sequence[schemas.Publication],
    payloads: Sequence[bytes],
    once: Once | None,
) -> list[Outgoing]:
    exchange = names.stream_name(state.tenant_id)
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
