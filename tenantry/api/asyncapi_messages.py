"""A tenant's messages in AsyncAPI: their form, and the headers that Tenantry understands."""

from __future__ import annotations

from typing import Any, Final

from tenantry.api.schemas.common import MAX_LIST
from tenantry.api.schemas.messages import EVENT
from tenantry.messages.cloudevents import BATCH, PREFIX, REQUIRED, STRUCTURED

Json = dict[str, Any]

HTTP_BINDING: Final = "0.3.0"

PUBLISHED: Final = ("json", "bytes", "cloudevent", "cloudeventBinary")
"""The kinds of messages that brokers take, by their names in `components`."""


def ref(path: str) -> Json:
    """Make a reference to a place in the document."""
    return {"$ref": f"#/{path}"}


_TRACE: Final[Json] = {
    "traceparent": {
        "type": "string",
        "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        "description": "The trace that the message belongs to (W3C Trace Context).",
    },
    "tracestate": {"type": "string", "maxLength": 512},
}

_HEADERS: Final[Json] = {
    "message_id": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "description": "AMQP's property, Iggy's id or header `message-id`, the parameter `id` in "
        "SQL. A message of the same id is stored once; without one it gets one.",
    },
    "timestamp_in_ms": {
        "type": "integer",
        "minimum": 0,
        "description": "When it was published, in milliseconds since 1970; else AMQP's property "
        "`timestamp`. Latency is measured from it.",
    },
    "content-encoding": {
        "type": "string",
        "description": "AMQP's property. What is compressed is stored as `body`, as it came.",
    },
    "correlation-id": {"type": "string", "description": "AMQP's property, kept among the headers."},
    **_TRACE,
}


def _event_headers(prefix: str) -> Json:
    """Describe the headers of an event in binary mode, which are its attributes."""
    named = {
        f"{prefix}{name}": schema
        for name, schema in EVENT["properties"].items()
        if name not in ("data", "data_base64", "datacontenttype")
    }
    return headers_of(_HEADERS | named, tuple(f"{prefix}{name}" for name in REQUIRED))


def headers_of(properties: Json, required: tuple[str, ...] = ()) -> Json:
    """Describe headers of which some are required."""
    made: Json = {"type": "object", "properties": properties}
    return made | {"required": list(required)} if required else made


def messages() -> Json:
    """Describe every kind of message, by its name in `components`."""
    return {
        "json": {
            "title": "JSON, stored as `payload`",
            "contentType": "application/json",
            "headers": headers_of(_HEADERS),
            "payload": {"description": "Any JSON that PostgreSQL's `jsonb` holds."},
        },
        "bytes": {
            "title": "Anything else, stored as `body`",
            "contentType": "application/octet-stream",
            "headers": headers_of(_HEADERS),
            "payload": {"type": "string", "format": "binary"},
        },
        "cloudevent": {
            "title": "A CloudEvent in structured mode",
            "description": "Stored as `body`, as it came; its attributes beside it as headers "
            f"(`{PREFIX}type`). Over AMQP, without a message id, its `source` and `id` are one.",
            "contentType": STRUCTURED,
            "headers": headers_of(_HEADERS),
            "payload": ref("components/schemas/Event"),
        },
        "cloudevents": {
            "title": "Several CloudEvents, over HTTP alone",
            "contentType": BATCH,
            "payload": {
                "type": "array",
                "maxItems": MAX_LIST,
                "items": ref("components/schemas/Event"),
            },
        },
        "cloudeventBinary": {
            "title": "A CloudEvent in binary mode",
            "description": "The body is its data, of whichever content type. The attributes are "
            f"headers, `{PREFIX}type` or `cloudEvents_type`.",
            "headers": _event_headers(PREFIX),
            "payload": {"description": "The event's data."},
        },
        "cloudeventOverHttp": {
            "title": "A CloudEvent in binary mode, over HTTP",
            "description": "The body is its data, of whichever content type. On the broker and in "
            f"the store its attributes are headers `{PREFIX}type`.",
            "headers": _event_headers("ce-"),
            "payload": {"description": "The event's data."},
        },
        "publications": {
            "title": "One message, or a list of them, over HTTP alone",
            "contentType": "application/json",
            "headers": headers_of(
                {"Idempotency-Key": {"type": "string", "maxLength": 255}, **_TRACE}
            ),
            "payload": {
                "oneOf": [
                    _PUBLICATION,
                    {"type": "array", "items": _PUBLICATION, "minItems": 1, "maxItems": MAX_LIST},
                ]
            },
        },
        "accepted": {
            "title": "The ids of what the broker has confirmed",
            "contentType": "application/json",
            "payload": {
                "type": "object",
                "required": ["ids"],
                "properties": {"ids": {"type": "array", "items": {"type": "string"}}},
            },
            "bindings": {"http": {"statusCode": 202, "bindingVersion": HTTP_BINDING}},
        },
        "stored": {
            "title": "A row: `payload` for JSON, `body` (base64) for anything else",
            "contentType": "application/json",
            "payload": _STORED,
        },
    }


_PUBLICATION: Final[Json] = {
    "type": "object",
    "required": ["payload"],
    "additionalProperties": False,
    "properties": {
        "payload": {"description": "Any JSON value; its text is passed on unchanged."},
        "topic": {"type": "string"},
        "key": {"type": "string", "maxLength": 1024},
        "id": {"type": "string", "minLength": 1, "maxLength": 255},
    },
}

_STORED: Final[Json] = {
    "type": "object",
    "required": ["id", "tenant_id", "position", "topic", "partition", "created_at"],
    "properties": {
        "id": {"type": "string"},
        "tenant_id": {"type": "string"},
        "position": {"type": "integer", "description": "Rises in commit order."},
        "topic": {"type": "string"},
        "partition": {"type": "integer"},
        "payload": {},
        "body": {"type": "string", "contentEncoding": "base64"},
        "content_type": {"type": ["string", "null"]},
        "headers": {"type": ["object", "null"]},
        "created_at": {"type": "string", "format": "date-time"},
    },
}
