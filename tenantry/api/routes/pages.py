"""The API's own description: the OpenAPI document and Swagger UI, which needs no internet."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

from fastapi import FastAPI
from starlette.responses import Response

from tenantry.api import openapi
from tenantry.api.render import json_response
from tenantry.http.problems import Problem

# The package's own application object is not used: only the files of Swagger UI it brings along.
_PACKAGE: Final = "fastapi_offline"
_FILES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
}
# Everything is named from where it is, so that a proxy may put any prefix before it.
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
# Whatever the files might try: the browser fetches from this server only.
_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)


def add_routes(app: FastAPI) -> None:
    """Serve the description of `app` on itself."""

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> Response:
        return json_response(openapi.written(app))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page("swagger/")

    @app.get("/swagger/{asset}", include_in_schema=False)
    async def swagger(asset: str) -> Response:
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


def _page(assets: str) -> Response:
    page = _PAGE.format(assets=assets)
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@cache
def _file(name: str) -> bytes:
    return (resources.files(_PACKAGE) / "static" / name).read_bytes()
