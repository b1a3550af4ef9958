"""The registry of pages, and how a request is routed to its page."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantry.api.access import is_page
from tenantry.http.auth import session_of
from tenantry.http.oidc import LoginError, Logins
from tenantry.http.problems import Problem
from tenantry.page import rendering, sessions
from tenantry.page.asking import Api, NotLetIn, Viewer, logins_of

MOST_FIELDS: Final = 1100

LOGGED_OUT: Final = "ui/logged-out"
"""The page after logging out, where users log in by an identity provider."""

_MOST_KEPT: Final = 40_000
"""Bytes of a page that repeated form input may take."""

_FORM: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request of the page: the names in its path, its parameters or fields, and the API."""

    path: str
    names: Mapping[str, str]
    fields: Sequence[tuple[str, str]]
    headers: Headers
    api: Api

    @property
    def given(self) -> Mapping[str, str]:
        """The parameters or fields; of several with one name, the last."""
        return dict(self.fields)

    @property
    def kept(self) -> Mapping[str, str]:
        """The form input, to be shown again; fields that would make the page large are left out."""
        kept, left = {}, _MOST_KEPT
        for name, value in self.given.items():
            if (size := rendering.size(value)) <= left:
                kept[name], left = value, left - size
        return kept

    def html(self, template: str, viewer: Viewer, status: int = 200, **shown: Any) -> Response:
        """Write a page for a viewer."""
        return rendering.html(template, self.path, status, viewer=viewer, **shown)

    def json(self, shown: Mapping[str, str]) -> Response:
        """Write texts by name, for the page's script to put in place of the old ones."""
        return rendering.json(shown)

    def lead_to(self, to: str, headers: Mapping[str, str] | None = None) -> Response:
        """Redirect to another page: `ui/tenants/acme`, say."""
        return rendering.see_other(self.path, to, headers)

    def lead_to_saying(self, to: str, done: str) -> Response:
        """Redirect to another page, which tells this viewer what has been done."""
        return self.lead_to(f"{to}?done={self.api.note(done, to)}")

    @property
    def done(self) -> str:
        """What the form that led here has done; empty if no form just has."""
        return self.api.noted(self.given.get("done", ""), self.path.strip("/"))


Show = Callable[[Visit], Awaitable[Response]]


class Pages(dict[tuple[str, str], Show]):
    """Pages by method and path."""

    def __call__(self, call: str) -> Callable[[Show], Show]:
        """Decorate a function as the page of a method and path: `GET /ui/nodes`, say."""
        method, _, path = call.partition(" ")

        def add(show: Show) -> Show:
            self[method, path] = show
            return show

        return add


class Page:
    """Middleware that serves `pages` under `/ui`, and passes every other request on."""

    def __init__(self, app: ASGIApp, *, pages: Mapping[tuple[str, str], Show]) -> None:
        self._app = app
        self._pages: list[tuple[str, re.Pattern[str], Show]] = [
            (method, compile_path(path)[0], show) for (method, path), show in pages.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path: str = request.scope["path"]
        try:
            show, names = self._find(request.method, path)
            visit = await _visit(request, names)
            return await show(visit)
        except NotLetIn as reason:
            return await _ask_who(request, str(reason))
        except Problem as problem:
            return _told(path, problem)

    def _find(self, method: str, path: str) -> tuple[Show, Mapping[str, str]]:
        method = "GET" if method == "HEAD" else method
        there = set()
        for wanted, pattern, show in self._pages:
            if (match := pattern.match(path)) is not None:
                if wanted == method:
                    return show, match.groupdict()
                there.add(wanted)
        if there:
            allowed = ", ".join(sorted(there | ({"HEAD"} if "GET" in there else set())))
            raise Problem(405, "this page does not take this", headers={"Allow": allowed})
        raise Problem(404, "there is no such page")


async def _ask_who(request: Request, reason: str) -> Response:
    """Ask for a token, and offer a login by an identity provider where one is set up."""
    path: str = request.scope["path"]
    left = path == f"/{LOGGED_OUT}"
    here = "ui" if left or request.method == "POST" else path.removeprefix("/")
    logins, provider, way, has_way_out = logins_of(request.scope), "", "", False
    if logins is not None:
        # An absolute URL: the provider sends users back to this address, and the cookie that
        # identifies their browser has to be set for it.
        way = f"{logins.registration.public_url}/ui/oidc?{urlencode({'to': here})}"
        provider = logins.provider
        has_way_out = left and await _has_way_out(logins)
    # The API takes `Bearer`; browsers show no password prompt for it.
    return rendering.html(
        "login.html",
        path,
        200 if left else 401,
        {} if left else {"WWW-Authenticate": "Bearer"},
        reason=reason,
        to=here,
        provider=provider,
        way=way,
        has_way_out=has_way_out,
    )


async def _has_way_out(logins: Logins) -> bool:
    try:
        return await logins.way_out() is not None
    except LoginError:
        return False


def _told(path: str, problem: Problem) -> Response:
    return rendering.html("problem.html", path, problem.status, problem.headers, problem=problem)


async def _visit(request: Request, names: Mapping[str, str]) -> Visit:
    headers = request.headers
    if request.method in {"GET", "HEAD"}:
        written = request.scope["query_string"]
    else:
        sessions.refuse_foreign_forms(headers)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Problem(415, f"a form of this page is sent as {_FORM}")
        written = await request.body()
    try:
        fields = parse_qsl(
            written.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise Problem(400, "the form can't be read") from None
    return Visit(
        path=request.scope["path"],
        names=names,
        fields=fields,
        headers=headers,
        api=Api(request.scope, session_of(headers)),
    )
