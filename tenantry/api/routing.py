"""The way of a request to its route, and what every route reads: body, caller, tenant's id.

Callers are authenticated and authorised before the body is read; requests beyond the limits are
refused.

A fast route serves a frequent call with the same handler, but without FastAPI's machinery. It
serves plain requests only. Unusual requests, above all invalid ones, go through FastAPI, which
answers them as usual.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenantry.api import access, errors
from tenantry.api.tracing import trace_of
from tenantry.domain import names
from tenantry.http.auth import Authentication, principal_of
from tenantry.http.identity import Identity
from tenantry.http.middleware import (
    MAX_REQUESTS,
    REQUEST_SECONDS,
    BoundedBody,
    Limits,
    RequestContext,
    correlation_id_of,
)
from tenantry.http.page_turns import PageTurns
from tenantry.http.problems import Problem, no_such_tenant
from tenantry.http.tokens import Principal
from tenantry.journal.port import Metadata

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 30.0


def way_in(
    identity: Identity,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout: float = BODY_SECONDS,
    request_timeout: float = REQUEST_SECONDS,
    max_requests: int = MAX_REQUESTS,
) -> list[Middleware]:
    """Give the middleware before the routes, outermost first. Timeouts are in seconds.

    Without tokens, TCP must be on loopback only.
    """
    return [
        Middleware(RequestContext),
        Middleware(Authentication, identity=identity, rule_for=access.rule_for),
        Middleware(
            BoundedBody,
            max_bytes=max_body_bytes,
            seconds=body_timeout,
            is_open=access.is_page,
        ),
        Middleware(Limits, most=max_requests, seconds=request_timeout),
        Middleware(PageTurns, identity=identity, is_page=access.is_page),
    ]


def held_by_app(name: str) -> Any:
    """Make a route's dependency on an attribute of its application's state."""

    async def find(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(find)


async def _metadata(request: Request) -> Metadata:
    trace = trace_of(request.scope)
    return Metadata(
        actor=principal_of(request.scope).name,
        correlation_id=correlation_id_of(request.scope),
        trace_id=None if trace is None else trace.trace_id,
    )


async def _principal(request: Request) -> Principal:
    return principal_of(request.scope)


Who = Annotated[Principal, Depends(_principal)]
"""The caller, for what they may see."""

Caller = Annotated[Metadata, Depends(_metadata)]
"""The caller, for the journal."""


def checked_id(tenant_id: str) -> str:
    """Return a valid tenant id; 404 for any other."""
    if not names.is_tenant_id(tenant_id):
        raise no_such_tenant()
    return tenant_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FastRoute:
    """A fast route.

    `serve` gets the request, the match of its path and its body; by None it leaves the request to
    FastAPI.
    """

    method: str
    path: re.Pattern[str]
    serve: Callable[[Request, re.Match[str], bytes], Awaitable[Response | None]]


class FastRoutes:
    """The innermost middleware: by now the caller is authorised, and the body has arrived."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[FastRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            for route in self._routes:
                if scope["method"] == route.method and (
                    match := route.path.fullmatch(scope["path"])
                ):
                    await self._serve(route, match, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _serve(
        self, route: FastRoute, match: re.Match[str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        message = await receive()
        if message["type"] != "http.request":  # the client has gone
            return
        request = Request(scope)
        try:
            response = await route.serve(request, match, message.get("body", b""))
        except Exception as error:  # noqa: BLE001 - what is unknown is raised again there
            response = await errors.answer(request, error)
        if response is not None:
            await response(scope, receive, send)
            return
        taken = False

        async def receive_again() -> Message:
            nonlocal taken
            if taken:
                return await receive()
            taken = True
            return message

        await self._app(scope, receive_again, send)


class JsonRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """Read the body: UTF-8, no NaN, no lone surrogate, at most 1024 deep.

        Raises `json.JSONDecodeError`.
        """
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route that accepts bodies of `application/json` only.

    A web page can make a browser send other types to any server without a preflight request; this
    type it can't.
    """

    _response_field: Any = None

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, response_model: Any = None, **options: Any
    ) -> None:
        """Make the route; `response_model` describes its answers in the OpenAPI document."""
        super().__init__(path, endpoint, response_model=None, **options)
        if not isinstance(response_model, DefaultPlaceholder):
            self.response_model = response_model

    # All endpoints return finished responses. So models of answers are needed for the OpenAPI
    # document alone, and built for it only: that takes half the time of building an application.
    @property
    def response_field(self) -> Any:
        """The model for the OpenAPI document."""
        if self._response_field is None and self.response_model is not None:
            name = f"Response_{self.unique_id}"
            self._response_field = create_model_field(
                name=name, type_=self.response_model, mode="serialization"
            )
        return self._response_field

    @response_field.setter
    def response_field(self, field: Any) -> None:
        self._response_field = field

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()
        takes_body = self.body_field is not None

        async def handle(request: Request) -> Response:
            strict = JsonRequest(request.scope, request.receive)
            if takes_body and await strict.body() and not is_json(strict):
                raise Problem(415, "send the body with Content-Type: application/json")
            return await handler(strict)

        return handle


def is_json(request: Request) -> bool:
    """Tell whether a request declares its body as JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
