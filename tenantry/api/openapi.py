"""The API's own description: the OpenAPI document, and Swagger UI, which needs no internet.

FastAPI makes the document from the routes and their declarations (`Routes`); this module adds
problems and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api.access import TABLE, shown
from tenantry.api.paging import LINK_HEADER
from tenantry.api.routing import JsonRoute
from tenantry.api.schemas.common import ProblemDocument, dumps, json_response
from tenantry.http.auth import Access
from tenantry.http.problems import MEDIA_TYPE, Problem, type_of

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
    "nodes": "Daemons on one database, which share the tenants.",
    "daemon": "The daemon itself.",
}


_IN_PATHS: Final = {
    "tenant_id": ("The tenant's id.", "acme"),
    "message_id": ("The message's id, percent-encoded.", "order-7"),
    "node": ("The node's name.", "ingest-1"),
    "part": ("The part's number.", 1),
    "letter_id": (
        "The letter's `letter_id`, or its message's id.",
        "8a9c6f0e-3f5f-4c55-a36e-0d6a3f9f0f11",
    ),
}
"""The description of each parameter in a path, and an example."""

_PUBLIC: Final = {
    (method, shown(path)) for (method, path), rule in TABLE.items() if rule is Access.PUBLIC
}


def document_of(app: FastAPI) -> dict[str, Any]:
    """Return the document of `app`, which is made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        # Relative to the document's own URL, so that a proxy may put any prefix before it.
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
                # FastAPI adds its own 422 wherever a path has a parameter. These are text here;
                # a route with invalid input declares its 422 itself.
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
                public = (method.upper(), path) in _PUBLIC
                operation["security"] = [] if public else [{}, {"token": []}]
        app.openapi_schema = made
    return app.openapi_schema


def _tidy(parameter: dict[str, Any]) -> None:
    """Describe a parameter in the path, which FastAPI does not; drop null, which none can be."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        parameter["schema"] = kinds[0] | schema
    if parameter["in"] == "path" and parameter["name"] in _IN_PATHS:
        parameter["description"], parameter["example"] = _IN_PATHS[parameter["name"]]


PROBLEM_REF: Final = "#/components/schemas/ProblemDocument"

_MEANINGS: Final = {
    400: "The body is not JSON, or the cursor is not one of this list.",
    401: "No token, or a bad one (TCP only).",
    403: "The token is not good for this (TCP only).",
    404: "There is no such tenant or topic.",
    408: "The body did not arrive in time.",
    409: "The tenant's present state does not allow this, or the id is taken.",
    410: "The events that this would need are archived; `detail` says where.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "Invalid input; `errors` names each field.",
    429: "Too much at once from this client. Try again.",
    500: "An error of the server's own, or a step of the command failed.",
    503: "Not now: starting, draining, or a service is away. Try again.",
    504: "No answer in time; the command may still be carried out.",
}

_EXAMPLES: Final = {
    400: ("bad-cursor", "Bad cursor", "the cursor is not one that this list gave out"),
    401: (None, "Unauthorized", "the token has expired"),
    403: (None, "Forbidden", "the token is for another tenant"),
    404: ("tenant-not-found", "No such tenant", "there is no such tenant"),
    408: (None, "Request Timeout", "the body did not arrive within 30 seconds"),
    409: ("wrong-state", "Not in this state", "tenant 'acme' is deleting and can't be paused"),
    410: ("events-archived", "Archived", "events up to position 1000000 are archived"),
    413: (None, "Content Too Large", "the body is larger than 1048576 bytes"),
    415: (None, "Unsupported Media Type", "send the body with Content-Type: application/json"),
    422: ("invalid", "Invalid input", "workers: must be less than or equal to 64"),
    429: ("too-many-requests", "Too many requests", "a client may have 256 requests at once"),
    500: (None, "Internal Server Error", "an error of the server's own; its log tells more"),
    503: ("not-taking-commands", "Unavailable for now", "the daemon is draining"),
    504: ("command-timeout", "No answer in time", "the command may still be carried out"),
}
"""By status: code, title and detail."""

_ALWAYS: Final = (500, 503)
_WITH_TOKENS: Final = (401, 403, 429)
_WITH_BODY: Final = (400, 408, 413, 415, 422)


_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


class Routes(list[JsonRoute]):
    """The routes of a resource, which the OpenAPI document shows under its tag."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag = tag

    def __call__(
        self,
        call: str,
        summary: str,
        model: Any,
        *,
        errors: Collection[int] = (),
        status: int | None = None,
        success: Mapping[str, Any] | None = None,
        paged: bool = False,
        extra: dict[str, Any] | None = None,
        response_class: type[Response] = Response,
    ) -> Callable[[_Endpoint], _Endpoint]:
        """Decorate a function as the route of a call: `GET /tenants`, say.

        `model` describes its JSON answer, None without one; `success` adds to the document's entry
        of that answer, and `paged` puts a `Link` header there instead. The route may fail with
        `errors`, besides the statuses common to all routes, or to all with a token or a body.
        `extra` is added to the document's entry of the call.
        """
        method, path = call.split()
        kind = {"response_class": response_class} if model is None else {}
        told = {"headers": LINK_HEADER} if paged else success

        def add(endpoint: _Endpoint) -> _Endpoint:
            route = JsonRoute(
                path,
                endpoint,
                methods=[method],
                status_code=status,
                summary=summary,
                tags=[self._tag],
                response_model=model,
                openapi_extra=extra,
                **kind,
            )
            route.responses = {} if told is None else {status or 200: dict(told)}
            route.responses |= _error_answers(route, errors)
            self.append(route)
            return endpoint

        return add


def _error_answers(route: JsonRoute, statuses: Collection[int]) -> dict[int | str, Any]:
    """Return the `responses` for a route's errors: these statuses, and the usual ones."""
    all_of_them = {*statuses, *_ALWAYS}
    if not any((method, route.path_format) in _PUBLIC for method in route.methods or ()):
        all_of_them.update(_WITH_TOKENS)
    if route.body_field is not None:
        all_of_them.update(_WITH_BODY)
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_REF}, "example": _example(status)}},
        }
        for status in sorted(all_of_them)
    }


def _example(status: int) -> dict[str, Any]:
    code, title, detail = _EXAMPLES[status]
    document: dict[str, Any] = {
        "type": type_of(code), "title": title, "status": status, "detail": detail
    }  # fmt: skip
    if status == 422:
        field, _, problem = detail.partition(": ")
        document["errors"] = [{"field": field, "problem": problem}]
    return document | {"correlation_id": "4a644fdfc7ba4c4daeaf84a122772ce3"}


# Only the package's files of Swagger UI are used, not its application object.
_PACKAGE: Final = "fastapi_offline"
_FILES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
# All addresses are relative, so that a proxy may put any prefix before them.
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tenantry API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{assets}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{assets}swagger-ui-bundle.js"></script>
<script src="{assets}start.js"></script>
</body>
</html>
"""
_START: Final = """\
SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
# The browser fetches from this server only, whatever the files of Swagger UI might try.
_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)


async def _document(request: Request) -> Response:
    return json_response(dumps(document_of(request.app)))


async def _docs() -> Response:
    return _page("swagger/")


async def _swagger(asset: str) -> Response:
    if asset == "index.html":
        return _page("")
    if asset == "start.js":
        return Response(_START, media_type="text/javascript")
    if asset not in _FILES:
        raise Problem(404, "nothing is served under this path")
    return Response(
        _file(asset),
        media_type=_FILES[asset],
        headers={"Cache-Control": "public, max-age=86400"},
    )


routes: Final = [
    JsonRoute(path, endpoint, methods=["GET"], include_in_schema=False)
    for path, endpoint in (
        ("/openapi.json", _document),
        ("/docs", _docs),
        ("/swagger/{asset}", _swagger),
    )
]


def _page(assets: str) -> Response:
    page = _PAGE.format(assets=assets)
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@cache
def _file(name: str) -> bytes:
    return (resources.files(_PACKAGE) / "static" / name).read_bytes()
