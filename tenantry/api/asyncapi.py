"""A tenant described in AsyncAPI 3.0: where its messages go, how they look, which limits hold.

The application described is Tenantry, at work for this tenant: it *receives* what clients publish.
The document has no secrets, and nothing of other tenants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tenantry.api.asyncapi_brokers import KINDS, BrokerPlace
from tenantry.api.asyncapi_messages import HTTP_BINDING, Json, messages, ref
from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.schemas.messages import EVENT
from tenantry.api.schemas.tenants import TenantLimits
from tenantry.domain import names
from tenantry.domain.tenant import TenantState
from tenantry.messages.headers import DEEPEST, MOST_BYTES
from tenantry.messages.postgres import MAX_BYTES
from tenantry.messages.validation import LONGEST_CONTENT_TYPE, LONGEST_ID

VERSION: Final = "3.0.0"

_POSTED: Final = ("publications", "cloudevent", "cloudevents", "cloudeventOverHttp")
"""The kinds of messages that HTTP takes, by their names in `components`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlace:
    """The API's address for a tenant's clients, and whether they need a token there."""

    host: str
    tls: bool = False
    tokens: bool = True
    path: str = ""


def document_of(
    state: TenantState, broker: BrokerPlace, http: HttpPlace, *, max_body_bytes: int
) -> Json:
    """Describe a tenant that exists."""
    channels, operations = dict(_api(state)), dict(_api_operations(state, max_body_bytes))
    kind = KINDS[broker.system]
    for topic in (names.DEFAULT_TOPIC, *state.topics):
        channels |= kind.channels(state, broker, topic)
        operations |= kind.operations(state, topic)
    return {
        "asyncapi": VERSION,
        "id": f"urn:tenantry:tenant:{state.tenant_id}:{state.incarnation}",
        "info": _info(state),
        "defaultContentType": "application/json",
        "servers": {"broker": kind.server(broker), "api": _api_server(http)},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages(),
            "schemas": {"Event": EVENT},
            "securitySchemes": {
                "user": {"type": "userPassword", "description": kind.user(state)},
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "With the scope `tenant` and this tenant's id.",
                },
            },
        },
    }


def _info(state: TenantState) -> Json:
    return {
        "title": f"Tenantry, for the tenant {state.tenant_id}",
        "version": f"{state.incarnation}.{state.version}.0",
        "description": (
            "What is published is stored once for each message id, in the order of commits, and "
            "acknowledged to the broker only then. What can't be stored becomes a dead letter, "
            "with its bytes and the reason. A body is stored as it came: JSON as `payload`, "
            "anything else as `body`."
        ),
        "x-tenant": {
            "id": state.tenant_id,
            "name": state.name,
            "state": state.lifecycle.value,
            "version": state.version,
        },
        "x-limits": {
            **TenantLimits.of(state.limits).model_dump(mode="json"),
            "message_bytes": MAX_BYTES,
            "id_bytes": LONGEST_ID,
            "content_type_bytes": LONGEST_CONTENT_TYPE,
            "headers_bytes": MOST_BYTES,
            "headers_levels": DEEPEST,
        },
    }


# HTTP.


def _api_server(http: HttpPlace) -> Json:
    made: Json = {
        "host": http.host,
        "protocol": "https" if http.tls else "http",
        "title": "The HTTP API",
    }
    if http.path:
        made["pathname"] = http.path
    if http.tokens:
        made["security"] = [ref("components/securitySchemes/token")]
    return made


def _api(state: TenantState) -> Iterator[tuple[str, Json]]:
    yield (
        "api.messages",
        {
            "address": f"/tenants/{state.tenant_id}/messages",
            "title": "Publishing over HTTP",
            "servers": [ref("servers/api")],
            "messages": {
                name: ref(f"components/messages/{name}") for name in (*_POSTED, "accepted")
            },
        },
    )
    yield (
        "api.stream",
        {
            "address": "/messages/stream",
            "title": "What is stored, as it is stored (server-sent events)",
            "servers": [ref("servers/api")],
            "messages": {"stored": ref("components/messages/stored")},
        },
    )


def _api_operations(state: TenantState, max_body_bytes: int) -> Iterator[tuple[str, Json]]:
    channel = "channels/api.messages"
    topics = [names.DEFAULT_TOPIC, *state.topics]
    yield (
        "api.publish",
        {
            "action": "receive",
            "channel": ref(channel),
            "summary": "Publish; answered with 202 once the broker has confirmed all.",
            "description": (
                f"Of {max_body_bytes} bytes and {MAX_LIST} messages at most. 429 with "
                "Retry-After beyond the tenant's `rate` or `backlog`. `topic` and `key` are "
                "parameters for CloudEvents; other messages name theirs in the body."
            ),
            "messages": [ref(f"{channel}/messages/{name}") for name in _POSTED],
            "reply": {
                "channel": ref(channel),
                "messages": [ref(f"{channel}/messages/accepted")],
            },
            "bindings": {
                "http": {
                    "method": "POST",
                    "query": {
                        "type": "object",
                        "properties": {
                            "topic": {"type": "string", "enum": topics},
                            "key": {"type": "string", "maxLength": 1024},
                        },
                    },
                    "bindingVersion": HTTP_BINDING,
                }
            },
        },
    )
    yield (
        "api.follow",
        {
            "action": "send",
            "channel": ref("channels/api.stream"),
            "summary": "Follow what is stored, from now on or from a cursor.",
            "bindings": {
                "http": {
                    "method": "GET",
                    "query": {
                        "type": "object",
                        "required": ["tenant_id"],
                        "properties": {
                            "tenant_id": {"type": "string", "const": state.tenant_id},
                            "topic": {"type": "string", "enum": topics},
                            "cursor": {"type": "string"},
                        },
                    },
                    "bindingVersion": HTTP_BINDING,
                }
            },
        },
    )
