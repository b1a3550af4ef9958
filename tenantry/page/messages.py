"""A tenant's stored messages, for who may see what is in them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry import exact
from tenantry.page.pages import Pages, Visit
from tenantry.page.viewing import Viewer, let_in

ROWS: Final = 25
"""Messages on a page."""

SHOWN: Final = 2000
"""Characters that are shown of one."""

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/messages")
async def show_messages(visit: Visit) -> Response:
    """List messages, the newest first unless the oldest are asked for."""
    tenant_id = visit.names["tenant_id"]
    topic, order = visit.given.get("topic") or None, visit.given.get("order") or "desc"
    who, messages = await asyncio.gather(
        visit.api.get("/whoami"),
        visit.api.exactly(
            "/messages",
            tenant_id=tenant_id,
            topic=topic,
            order=order,
            limit=ROWS,
            cursor=visit.given.get("cursor"),
        ),
    )
    viewer = Viewer.of(let_in(who).body)
    page = let_in(messages).body
    chosen = {"topic": topic or "", "order": order}
    following = None
    if page["next_cursor"] is not None:
        following = "messages?" + urlencode({**chosen, "cursor": page["next_cursor"]})
    return visit.html(
        "messages.html",
        viewer,
        tenant_id=tenant_id,
        messages=[{**one, "text": text_of(one)} for one in page["data"]],
        chosen=chosen,
        most=SHOWN,
        following=following,
    )


def text_of(message: Mapping[str, Any]) -> str:
    """Give what is in a message as text: its JSON, else its bytes as far as they are text."""
    if message.get("body") is None:
        return exact.dumps(message.get("payload"))
    return base64.b64decode(message["body"]).decode(errors="replace")
