"""The page as what stands before the routes of the API."""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware

from tenantry.page.pages import Page
from tenantry.page.views import pages

PAGE: Final = Middleware(Page, pages=pages)
