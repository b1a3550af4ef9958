"""How routes read bodies: strict JSON, announced as such."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.routing import APIRoute
from fastapi.utils import create_model_field

from tenantry.http import rawjson
from tenantry.http.problems import Problem


class JsonRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """Read the body. Raises `json.JSONDecodeError`."""
        return rawjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route that takes nothing but `application/json` where it takes a body.

    A web page can make a browser send other types to any server without asking; this one it
    can't.
    """

    _response_field: Any = None

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, response_model: Any = None, **options: Any
    ) -> None:
        """Make it; `response_model` is what the document says of its answers."""
        super().__init__(path, endpoint, response_model=None, **options)
        if not isinstance(response_model, DefaultPlaceholder):
            self.response_model = response_model

    # All endpoints give responses that are ready to be sent. So what they look like is for the
    # document alone, and made for that: it is half the time that an application takes to be made.
    @property
    def response_field(self) -> Any:
        """What the document is made of."""
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
    """Tell whether a request's body is announced as JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
