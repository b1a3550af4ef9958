"""The OpenAPI document: what FastAPI makes of the routes, with problems and tokens added."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from tenantry.api import render
from tenantry.api.access import TABLE, shown
from tenantry.api.answers import ProblemDocument
from tenantry.http.auth import Access

DESCRIPTION = """\
Takes many tenants' messages from RabbitMQ into PostgreSQL, each exactly once.

The same API is served on the control socket, where the file's mode decides who may connect and no
token is needed, and on TCP. Errors are problem documents (RFC 9457). Times are RFC 3339, UTC.
"""

_TAGS: Final = {
    "tenants": "Made, changed, deleted; as they are, and as they were.",
    "messages": "Published with confirms; read page by page, or followed as they are stored.",
    "dead letters": "Messages that could not be stored.",
    "events": "The journal: all that has happened.",
    "audit": "Does it add up: what was counted, held against what is there.",
    "isolation": "Proofs that no tenant reaches another.",
    "daemon": "The daemon itself.",
}


_IN_PATHS: Final = {
    "tenant_id": ("The tenant's id.", "acme"),
    "message_id": ("The message's id, percent-encoded.", "order-7"),
    "letter_id": (
        "The letter's `letter_id`, or its message's id.",
        "8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11",
    ),
}
"""What a parameter in a path means, and an example."""

_ACCESS: Final = {(method, shown(path)): access for (method, path), access in TABLE.items()}


def document(app: FastAPI) -> dict[str, Any]:
    """Describe `app`; made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        # Where the document itself was found, whatever prefix a proxy has put before that.
        made["servers"] = [{"url": "."}]
        components = made["components"]
        for foreign in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(foreign, None)
        components["schemas"]["ProblemDocument"] = ProblemDocument.model_json_schema()
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        }
        made["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items()]
        for path, operations in made["paths"].items():
            for method, operation in operations.items():
                for parameter in operation.get("parameters", ()):
                    _tidy(parameter)
                public = _ACCESS[method.upper(), path] is Access.PUBLIC
                # FastAPI adds its own 422 wherever a path has a parameter; here these are text,
                # and what can be invalid is said by the route.
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
                operation["security"] = [] if public else [{}, {"token": []}]
        app.openapi_schema = made
    return app.openapi_schema


def _tidy(parameter: dict[str, Any]) -> None:
    """Say what FastAPI does not of a parameter, and not what makes no sense for one: null."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        parameter["schema"] = kinds[0] | schema
    if parameter["in"] == "path" and parameter["name"] in _IN_PATHS:
        parameter["description"], parameter["example"] = _IN_PATHS[parameter["name"]]


def written(app: FastAPI) -> bytes:
    """Give the description of `app` as JSON."""
    return render.dumps(document(app))
