"""A tenant's messages, described in AsyncAPI for programs that publish and read them."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenantry.api.asyncapi import HttpPlace, document_of
from tenantry.api.openapi import Routes
from tenantry.api.routing import MAX_BODY_BYTES, Who
from tenantry.api.schemas.common import dumps, json_response
from tenantry.api.services import Injected, Services
from tenantry.http.auth import Listener, connection_of
from tenantry.urls import address

_HOST: Final = re.compile(r"(?:[A-Za-z0-9.\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - nothing is bound here

routes = Routes("tenants")


@routes(
    "GET /tenants/{tenant_id}/asyncapi.json",
    "Describe a tenant's messages in AsyncAPI",
    None,
    errors=(404,),
    response_class=JSONResponse,
)
async def describe(services: Injected, tenant_id: str, who: Who, request: Request) -> Response:
    """Describe where a tenant's messages go and what they look like: AsyncAPI 3.0.

    With the tenant's channels, user and address on its broker, its limits, and the headers that
    Tenantry understands; without any secret.
    """
    http = _http(services, request)

    def read() -> bytes:
        state = services.lookup.existing(tenant_id, who)
        return dumps(document_of(state, services.broker, http, max_body_bytes=MAX_BODY_BYTES))

    return json_response(await services.pools.reads.run(read))


def _http(services: Services, request: Request) -> HttpPlace:
    """Return the API's place: from its public URL, the request's `Host`, or else the settings."""
    told = services.info.get("server")
    server: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    tokens = services.identity.is_asked_for
    if public := server.get("public_url"):
        url = urlsplit(public)
        return HttpPlace(host=url.netloc, path=url.path, tls=url.scheme == "https", tokens=tokens)
    host = request.headers.get("host", "")
    if connection_of(request.scope).listener is Listener.CONTROL or not _HOST.fullmatch(host):
        own = str(server.get("host") or "localhost")
        host = address(socket.gethostname() if own in _ANY else own, server.get("port"))
    return HttpPlace(host=host, tls=bool(server.get("tls")), tokens=tokens)
