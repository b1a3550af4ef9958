"""A tenant's stored messages, for viewers who may see payloads."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from tenantry import exact
from tenantry.page.asking import admitted, let_in, viewer_of
from tenantry.page.pages import Pages, Visit

ROWS: Final = 25
"""Messages on a page."""

SHOWN: Final = 500
"""Characters of a message that a list shows."""

SHOWN_OF_ONE: Final = 8192
"""Characters of a message that its own page shows."""

FEWER: Final = (ROWS, 5, 1)
LARGEST: Final = 2 * 1024 * 1024
"""Bytes of an answer that are read: if messages are larger, fewer are asked for at a time."""

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/messages")
async def show_messages(visit: Visit) -> Response:
    """List messages, the newest first unless the oldest are asked for."""
    tenant_id = visit.names["tenant_id"]
    topic, order = visit.given.get("topic") or None, visit.given.get("order") or "desc"
    viewer = await viewer_of(visit.api)
    cursor = visit.given.get("cursor")
    page = await _page(visit, tenant_id=tenant_id, topic=topic, order=order, cursor=cursor)
    chosen = {"topic": topic or "", "order": order}
    following = None
    if page["next_cursor"] is not None:
        following = "messages?" + urlencode({**chosen, "cursor": page["next_cursor"]})
    return visit.html(
        "messages.html",
        viewer,
        tenant_id=tenant_id,
        messages=page["data"],
        chosen=chosen,
        most=SHOWN,
        following=following,
        tail=_tail(tenant_id, topic) if order == "desc" and cursor is None else None,
    )


def _tail(tenant_id: str, topic: str | None) -> str:
    return "ui/tail?" + urlencode({"tenant_id": tenant_id, **({"topic": topic} if topic else {})})


@pages("GET /ui/tenants/{tenant_id}/message")
async def show_message(visit: Visit) -> Response:
    """Show one stored message, by its id; it may not be stored yet."""
    tenant_id, message_id = visit.names["tenant_id"], visit.given.get("id", "")
    call = "GET /tenants/{tenant_id}/messages/{message_id:any}"
    viewer = await admitted(visit.api, call)
    answer = await visit.api.read(f"/tenants/{tenant_id}/messages/{message_id}", _read_one)
    if answer.status != 404:
        let_in(answer)
    return visit.html(
        "message.html",
        viewer,
        answer.status,
        tenant_id=tenant_id,
        message_id=message_id,
        message=answer.body if answer.well else None,
        problem=answer.problem,
        most=SHOWN_OF_ONE,
    )


async def _page(visit: Visit, **query: object) -> Any:
    """Return a page of the API's list, each message with its payload as `text`."""
    for limit in FEWER:
        page = let_in(await visit.api.read("/messages", _read, limit=limit, **query)).body
        if page is not None:
            return page
    return let_in(await visit.api.read("/messages", _read_large, limit=FEWER[-1], **query)).body


def _read(written: bytes) -> Any:
    if len(written) > LARGEST:
        return None
    page = exact.loads(written.decode())
    for one in page["data"]:
        one["text"] = text_of(one)
    return page


def _read_large(written: bytes) -> Any:
    page = orjson.loads(written)
    for one in page["data"]:
        one["text"] = _too_large(written)
    return page


def _read_one(written: bytes) -> Any:
    if len(written) > LARGEST:
        return {**orjson.loads(written), "text": _too_large(written)}
    message = exact.loads(written.decode())
    return {**message, "text": text_of(message)}


def _too_large(written: bytes) -> str:
    return f"too large to be shown here: some {len(written):,} bytes"


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's payload as text: its JSON, else its bytes decoded as far as possible."""
    if message.get("body") is None:
        return exact.dumps(message.get("payload"))
    return base64.b64decode(message["body"]).decode(errors="replace")
