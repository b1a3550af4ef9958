"""Publishing messages with confirms, from lists of payloads or as CloudEvents."""

from __future__ import annotations

import re
from typing import Annotated, Final

from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import cloudevents, idempotency
from tenantry.api.openapi import Routes
from tenantry.api.publisher import Publisher
from tenantry.api.routing import FastRoute, Who, held_by_app, is_json
from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.schemas.messages import EVENT, Accepted, Publications
from tenantry.http.auth import principal_of
from tenantry.messages.cloudevents import BATCH, STRUCTURED

_PATH: Final = re.compile("/tenants/([^/]+)/messages")


def fast_route(publisher: Publisher) -> FastRoute:
    """Return the fast route for publishing, for calls without an idempotency key.

    For CloudEvents it is the only route: the other one's model does not describe their bodies.
    """

    async def serve(request: Request, match: re.Match[str], body: bytes) -> Response | None:
        keyed = idempotency.HEADER in request.headers
        who = principal_of(request.scope)
        if cloudevents.has_events(request):
            if keyed and publisher.idempotency is None:  # the daemon has the keys
                return None
            return await publisher.publish_events(request, match[1], who, body)
        if keyed or not is_json(request):
            return None
        asked = publisher.tracer.context_of(request.scope["headers"])
        return await publisher.read_and_publish(match[1], who, body, asked)

    return FastRoute(method="POST", path=_PATH, serve=serve)


EVENTS_TAKEN: Final = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"Of CloudEvents: {meaning}",
            "schema": {"type": "string"},
        }
        for name, meaning in (
            ("topic", "one of the tenant's topics; `default` if left out."),
            ("key", "as in a message; the extension `partitionkey` if left out."),
        )
    ],
    "requestBody": {
        "content": {
            STRUCTURED: {"schema": EVENT},
            BATCH: {"schema": {"type": "array", "items": EVENT, "maxItems": MAX_LIST}},
        }
    },
}
"""What the OpenAPI document says of CloudEvents."""

routes = Routes("messages")


@routes(
    "POST /tenants/{tenant_id}/messages",
    "Publish messages",
    Accepted,
    errors=(404, 409, 429),
    status=202,
    extra=EVENTS_TAKEN,
)
async def publish(
    publisher: Annotated[Publisher, held_by_app("publisher")],
    tenant_id: str,
    publications: Publications,
    request: Request,
    who: Who,
    *,
    idempotency_key: idempotency.Key = None,
) -> Response:
    """Publish one message or a list of them; answers once the broker has confirmed all.

    After a 503 some may have been taken: send all again, with the same ids or the same
    `Idempotency-Key`, and each is stored once. With a key, ids that are left out are made
    from it, so that a repeated call has the same answer. A 429 says that the tenant publishes
    faster than its rate, or that its backlog is full.

    CloudEvents are taken, too: structured ones as `application/cloudevents+json` or
    `application/cloudevents-batch+json`, and in binary mode, with their attributes as `ce-` headers
    and their data, of any type, as the body. Their topic and key are parameters; their ids are
    made of `source` and `id`.
    """
    body = await request.body()
    asked = publisher.tracer.context_of(request.scope["headers"])
    return await publisher.publish(
        tenant_id, who, publications, body, key=idempotency_key, asked=asked
    )
