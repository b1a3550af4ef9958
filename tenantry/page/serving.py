"""The page as what stands before the routes of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.middleware import Middleware

from tenantry.page import actions, tenants, views
from tenantry.page.pages import Page, Show

PAGES: Final[Mapping[tuple[str, str], Show]] = {
    **views.pages,
    **tenants.pages,
    **actions.pages,
}
"""All there are, by method and path."""

PAGE: Final = Middleware(Page, pages=PAGES)
