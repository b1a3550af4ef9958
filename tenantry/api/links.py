"""`Link` headers (RFC 8288): the way to the next page, for clients that follow links."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from starlette.requests import Request

DOCUMENTED: Final[dict[str, Any]] = {
    "Link": {
        "description": 'The next page, `rel="next"`, where there may be one.',
        "schema": {"type": "string"},
        "example": '</tenants?limit=50&cursor=kZ0x>; rel="next"',
    }
}
"""What the OpenAPI document says of the header."""


def next_page(request: Request, cursor: str | None) -> dict[str, str]:
    """Give the header that leads on from a page: the same request with the page's own cursor."""
    if cursor is None:
        return {}
    query = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name != "cursor"
    ]
    query.append(("cursor", cursor))
    # Quoted anew, so that nothing a client has put into the request breaks out of the header.
    path = quote(request.scope["path"], safe="/")
    return {"Link": f'<{path}?{urlencode(query)}>; rel="next"'}
