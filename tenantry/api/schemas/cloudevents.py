"""A CloudEvent in JSON, as documents describe it; `messages.cloudevents` has the rules."""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string", "minLength": 1}

EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"type": "string", "const": "1.0"},
        "id": _TEXT | {"description": "Unique within its source.", "examples": ["order-7-created"]},
        "source": _TEXT
        | {"format": "uri-reference", "description": "Where it comes from.", "examples": ["/shop"]},
        "type": _TEXT | {"examples": ["com.example.order.created"]},
        "subject": _TEXT | {"examples": ["order-7"]},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": _TEXT | {"examples": ["application/json"]},
        "dataschema": _TEXT | {"format": "uri"},
        "partitionkey": _TEXT | {"description": "Events of one key go to one partition."},
        "data": {"description": "Any JSON value; its text is passed on unchanged."},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
    },
    "additionalProperties": {"type": ["string", "boolean", "integer", "null"]},
}
"""Extensions have names of a-z and 0-9."""
