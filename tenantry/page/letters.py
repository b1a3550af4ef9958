"""A tenant's dead letters: listed, shown, replayed, discarded.

A dry run first shows what a replay or a discard would do; the viewer then confirms it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from tenantry.page.asking import Viewer, let_in, viewer_of
from tenantry.page.pages import Pages, Visit
from tenantry.page.tenants import in_utc

ROWS: Final = 50
"""Dead letters on a page."""

SHOWN_BYTES: Final = 8192
"""Bytes of a body that are shown."""

CALLS: Final[Mapping[str, str]] = {
    "/ui/tenants/{tenant_id}/dead-letters/replay": "POST /tenants/{tenant_id}/dead-letters/replay",
    "/ui/tenants/{tenant_id}/dead-letters/discard": "DELETE /tenants/{tenant_id}/dead-letters",
}
"""The call of each form."""

_CONDITIONS: Final = ("reason", "topic", "since", "until")

pages: Final = Pages()


@pages("GET /ui/tenants/{tenant_id}/dead-letters")
async def show_letters(visit: Visit) -> Response:
    """List the dead letters that the conditions select, without their contents."""
    conditions = _conditions(visit)
    who, letters = await asyncio.gather(
        visit.api.get("/whoami"),
        visit.api.get(
            _path(visit),
            **conditions,
            limit=ROWS,
            payload="false",
            cursor=visit.given.get("cursor"),
        ),
    )
    viewer = Viewer.of(let_in(who).body)
    page = let_in(letters).body
    following = None
    if page["next_cursor"] is not None:
        following = "dead-letters?" + urlencode({**conditions, "cursor": page["next_cursor"]})
    return visit.html(
        "letters.html",
        viewer,
        tenant_id=visit.names["tenant_id"],
        letters=page["data"],
        conditions=conditions,
        first="dead-letters?" + urlencode(conditions),
        following=following,
    )


@pages("GET /ui/tenants/{tenant_id}/dead-letters/{letter_id}")
async def show_letter(visit: Visit) -> Response:
    """Show one dead letter; its contents only to viewers who may see payloads."""
    who, letter = await asyncio.gather(
        visit.api.get("/whoami"),
        visit.api.exactly(f"{_path(visit)}/{visit.names['letter_id']}"),
    )
    viewer = Viewer.of(let_in(who).body)
    shown = let_in(letter).body
    body = base64.b64decode(shown["body"]) if shown.get("body") is not None else None
    return visit.html(
        "letter.html",
        viewer,
        tenant_id=visit.names["tenant_id"],
        letter=shown,
        headers=shown.get("headers"),
        body=None if body is None else body[:SHOWN_BYTES].decode(errors="replace"),
        most=SHOWN_BYTES,
        cut=body is not None and len(body) > SHOWN_BYTES,
    )


async def _work_off(form: str, visit: Visit) -> Response:
    """Show what a form would do; do it once the viewer has confirmed."""
    method, _, _ = CALLS[form].partition(" ")
    act = form.rpartition("/")[2]
    path = f"{_path(visit)}/replay" if act == "replay" else _path(visit)
    wanted = _selection(visit)
    if visit.given.get("confirmed") == "yes":
        if act == "replay" and visit.given.get("force") == "yes":
            wanted["force"] = True
        done = let_in(await visit.api.call(method, path, body=wanted))
        template, told = "letters_done.html", done.body
    else:
        preview = let_in(await visit.api.call(method, path, body={**wanted, "dry_run": True}))
        template, told = "letters_confirm.html", preview.body
    return visit.html(
        template,
        await viewer_of(visit.api),
        tenant_id=visit.names["tenant_id"],
        act=act,
        told=told,
        kept=[pair for pair in visit.fields if pair[0] not in {"confirmed", "force"}],
    )


def _selection(visit: Visit) -> dict[str, Any]:
    """Return which letters a form means: the chosen ones, else all that its conditions select."""
    if chosen := [value for name, value in visit.fields if name == "id"]:
        return {"ids": chosen}
    conditions = _conditions(visit)
    return {"filter": conditions} if conditions else {"all": True}


def _conditions(visit: Visit) -> dict[str, str]:
    given = {name: visit.given.get(name, "").strip() for name in _CONDITIONS}
    for name in ("since", "until"):
        given[name] = in_utc(given[name])
    return {name: value for name, value in given.items() if value}


def _path(visit: Visit) -> str:
    return f"/tenants/{visit.names['tenant_id']}/dead-letters"


for _form in CALLS:
    pages["POST", _form] = partial(_work_off, _form)
