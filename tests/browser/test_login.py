"""Somebody logs in by a provider of identities, which is another site, and out again."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from http.server import BaseHTTPRequestHandler

import pytest

from tests.api.by_provider import Here, provided
from tests.browser.looking import Looking, barriers, click
from tests.identity_provider import KeyServer


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    with provided() as here:
        # A site is a name, whatever the port: the provider has an address, and the page has this.
        address = here.api.url.replace("127.0.0.1", "localhost")
        here.register(public_url=address)
        here.provider.redirect_uris = {f"{address}/ui/callback"}
        here.provider.send = _as_a_page  # type: ignore[method-assign]
        yield here


@pytest.fixture(scope="module")
def url(here: Here) -> str:
    return here.logins.registration.public_url


def _as_a_page(
    request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str
) -> None:
    """Have whoever is sent on by the provider click on a link of its, as people do there."""
    if status == 302:
        link = f"<a href='{escape(headers['Location'])}'>I am Ann</a>"
        status, body, headers = 200, link.encode(), {"Content-Type": "text/html"}
    KeyServer.send(request, body, status, **headers)


def test_who_comes_back_from_another_site_is_logged_in_and_where_they_wanted_to_be(
    here: Here, looking: Looking
) -> None:
    page = looking.look()
    page.goto("/ui/tenants/acme")
    assert barriers(page) == []
    click(page, page.get_by_role("link", name="Log in by 127.0.0.1"))
    assert page.url.startswith(here.provider.issuer)
    page.get_by_role("link", name="I am Ann").click()
    page.wait_for_url("**/ui/tenants/acme")
    assert page.locator(".who").inner_text().startswith("ann, operate")
    cookies = {one["name"]: one for one in page.context.cookies()}
    assert cookies.keys() == {"tenantry_session"}
    session = cookies["tenantry_session"]
    assert (session["sameSite"], session["httpOnly"], session["path"]) == ("Strict", True, "/ui")
    click(page, page.get_by_role("button", name="Log out"))
    assert page.context.cookies() == []
    assert barriers(page) == []
    click(page, page.get_by_role("link", name="log out there, too"))
    assert page.url.startswith(f"{here.provider.issuer}/end?")
