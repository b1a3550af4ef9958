"""The page as a middleware before the routes of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.middleware import Middleware

from tenantry.api.access import TABLE
from tenantry.page import (
    actions,
    administering,
    checks,
    letters,
    logging_in,
    messages,
    nodes,
    publishing,
    settings,
    tenants,
    views,
)
from tenantry.page.pages import Page, Show

PAGES: Final[Mapping[tuple[str, str], Show]] = {
    **views.pages,
    **logging_in.pages,
    **tenants.pages,
    **messages.pages,
    **publishing.pages,
    **letters.pages,
    **settings.pages,
    **checks.pages,
    **administering.pages,
    **nodes.pages,
    **actions.pages,
}
"""All pages, by method and path."""

FORMS: Final[Mapping[str, str]] = {
    **{path: one.call for path, one in {**actions.ACTIONS, **actions.GRANTS}.items()},
    **letters.CALLS,
    **publishing.CALLS,
    **settings.CALLS,
    **checks.CALLS,
    **administering.CALLS,
}
"""The API call that each form makes, by the form's path."""

_OF_SESSIONS: Final = {"/ui/login", "/ui/logout"}
for _call in FORMS.values():
    if tuple(_call.split(" ", 1)) not in TABLE:
        raise RuntimeError(f"a form of the page makes a call that there is not: {_call}")
if {path for method, path in PAGES if method == "POST"} != {*FORMS, *_OF_SESSIONS}:
    raise RuntimeError("the page takes a form and does not say which call that makes")

PAGE: Final = Middleware(Page, pages=PAGES)
