"""A tenant's stored messages, and those that come, for viewers who may see payloads.

A tenant may store thousands of large messages a second. Of these the page shows few of each second,
the beginning of each, and how many it left out.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tenantry import exact
from tenantry.page import rendering
from tenantry.page.asking import Api, admitted, let_in, viewer_of
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

EACH_SECOND: Final = 40
"""Messages shown of one second."""

LARGEST_EVENT: Final = 32 * 1024
"""Bytes of the largest event that is parsed; that happens on the event loop all requests share."""

_HELD: Final = 1024 * 1024
_END: Final = b"\n\n"
_HEARTBEAT: Final = b": still here\n\n"
_HEADERS: Final[Mapping[str, str]] = {
    **rendering.HEADERS,
    "Content-Type": "text/event-stream",
    "X-Accel-Buffering": "no",
}

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


@pages("GET /ui/tail")
async def follow_messages(visit: Visit) -> Response:
    """Stream a tenant's messages to the page's script: from now on, or from its cursor."""
    names = ("tenant_id", "topic", "cursor")
    return _Tail(visit.api, {name: visit.given.get(name) or None for name in names})


class _Tail(Response):
    """An endless answer. An error of the API is passed on as its status, without a body."""

    def __init__(self, api: Api, query: Mapping[str, str | None]) -> None:
        super().__init__()
        self._api = api
        self._query = query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        events, well = Events(), False

        async def show(message: Message) -> None:
            nonlocal well
            if message["type"] == "http.response.start":
                well = message["status"] == 200
                headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                await send({**message, "headers": headers})
                return
            body = events.shown(message.get("body", b"")) if well else b""
            more = message.get("more_body", False)
            if body or not more:
                await send({"type": message["type"], "body": body, "more_body": more})

        await self._api.follow("/messages/stream", receive, show, **self._query)


class Events:
    """Turns the API's events into the page's, each of several messages.

    A page's event has the API's `id`; its `data` is an object with `rows` and the count `left_out`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rest = b""
        self._broken = False
        self._second = 0
        self._shown = 0

    def shown(self, part: bytes) -> bytes:
        """Return the page's bytes for the next part of the API's answer; they may be empty."""
        *events, self._rest = (self._rest + part).split(_END)
        left_out = 0
        if self._broken and events:
            del events[0]
            self._broken, left_out = False, 1
        if len(self._rest) > _HELD:
            self._rest, self._broken = b"", True
        messages = [one for one in events if b"\ndata: " in one]
        few = self._few(messages)
        left_out += len(messages) - len(few)
        cursor = next((one for one in map(_cursor, reversed(events)) if one), b"")
        if cursor or left_out:
            data = orjson.dumps({"rows": [_row(one) for one in few], "left_out": left_out})
            return b"id: %b\ndata: %b\n\n" % (cursor, data)
        return _HEARTBEAT if events else b""

    def _few(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Return the last messages, as many as may still be shown in this second."""
        now = int(self._clock())
        if now != self._second:
            self._second, self._shown = now, 0
        few = messages[max(0, len(messages) - (EACH_SECOND - self._shown)) :]
        self._shown += len(few)
        return few


def _cursor(event: bytes) -> bytes:
    found = (line.removeprefix(b"id: ") for line in event.split(b"\n") if line.startswith(b"id: "))
    return next(found, b"")


def _row(event: bytes) -> dict[str, str]:
    """Write a message as texts, by the names of the cells in the page's table."""
    if len(event) > LARGEST_EVENT:
        return {"text": f"too large to be shown here: some {len(event):,} bytes"}
    message: Any = exact.loads(event.partition(b"\ndata: ")[2].decode())
    return {
        "position": rendering.number(message["position"]),
        "id": rendering.clipped(message["id"], 80),
        "link": "message?" + urlencode({"id": message["id"]}),
        "topic": f"{message['topic']} / {message['partition']}",
        "time": rendering.moment(message["created_at"]),
        "text": rendering.clipped(text_of(message), SHOWN),
    }
