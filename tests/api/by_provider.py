"""A page that people log in to by a provider of identities, that provider, and their browsers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urljoin

import httpx

from tenantry.http.fetching import trusting
from tenantry.http.identity import Identity
from tenantry.http.oidc import Logins, Pace, Registration
from tenantry.http.provider import Provider, ProviderTokens
from tenantry.http.provider_keys import Pace as KeysPace
from tenantry.http.provider_keys import ProviderKeys
from tests.api.page import Written
from tests.api.serving import SECRET, Served, World, serving
from tests.identity_provider import AUDIENCE
from tests.login_provider import CLIENT, LoginProvider, login_provider
from tests.login_provider import SECRET as CLIENT_SECRET
from tests.waiting import DEADLINE

PREFIX = "/ops/tenantry"
SCOPES = {"ops": "operate", "deep": "payloads", "boss": "admin", "shop": "tenant"}
PACE = Pace(look=DEADLINE, again=0.0)


class Proxy(httpx.HTTPTransport):
    """A proxy with a prefix before the server, which no header is told of."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith(f"{PREFIX}/"):
            given = request.url.raw_path.removeprefix(PREFIX.encode())
            request = httpx.Request(
                request.method,
                request.url.copy_with(raw_path=given),
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        return super().handle_request(request)


class Visitor:
    """A browser, in which somebody logs in."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = httpx.Client(transport=Proxy(), timeout=DEADLINE, trust_env=False)

    def get(self, url: str, *, foreign: bool = False) -> httpx.Response:
        """Ask for something; where a `foreign` page leads there, without strict cookies."""
        url = urljoin(f"{self.address}/", url)
        strict = [one for one in self.client.cookies.jar if foreign and _is_strict(one)]
        for one in strict:
            self.client.cookies.jar.clear(one.domain, one.path, one.name)
        answer = self.client.get(url)
        for one in strict:
            self.client.cookies.jar.set_cookie(one)
        return answer

    def post(self, path: str) -> httpx.Response:
        headers = {
            "Sec-Fetch-Site": "same-origin", "Origin": self.address,
            "Content-Type": "application/x-www-form-urlencoded",
        }  # fmt: skip
        return self.client.post(f"{self.address}/{path}", headers=headers)

    def way(self, path: str = "ui") -> str:
        """Where the page that asks who it is leads to."""
        asked = self.get(path)
        assert asked.status_code == 401
        (way,) = [one for one in Written(asked.text).links() if "/ui/oidc?" in one]
        return way

    def come_back(self, path: str = "ui") -> str:
        """Go to the provider; give the address that it leads back to."""
        led = self.get(self.way(path))
        assert led.status_code == 303
        there = self.get(led.headers["location"])
        assert there.status_code == 302, there.text
        return there.headers["location"]

    def log_in(self, path: str = "ui") -> httpx.Response:
        """Log in: the answer to who comes back."""
        return self.get(self.come_back(path), foreign=True)

    @property
    def session(self) -> str | None:
        return self.client.cookies.get("tenantry_session")


def _is_strict(cookie: Any) -> bool:
    return cookie.get_nonstandard_attr("SameSite") == "Strict"


class Here:
    """A page that people log in to by a provider, and what is there of it."""

    def __init__(self, api: Served, provider: LoginProvider, logins: Logins) -> None:
        self.api = api
        self.provider = provider
        self.logins = logins
        self.address = f"{api.url}{PREFIX}"
        self.visitors: list[Visitor] = []

    def visitor(self) -> Visitor:
        self.visitors.append(Visitor(self.address))
        return self.visitors[-1]

    def register(self, **more: Any) -> Logins:
        self.logins = Logins(
            replace(self.logins.registration, **more), self.api.world.identity, PACE
        )
        self.api.app.state.services.logins = self.logins
        return self.logins

    def whoami(self, session: str | None) -> Any:
        headers = {"Authorization": f"Bearer {session}"}
        return self.api.tcp.get("/whoami", headers=headers).json()


@contextmanager
def provided() -> Iterator[Here]:
    with login_provider() as provider:
        rules = Provider(
            jwks_url=provider.url, issuer=provider.issuer, audience=[AUDIENCE],
            scope_claim="groups", tenant_claim="org", scopes=SCOPES,
        )  # fmt: skip
        pace = KeysPace(every=3600.0, again=0.01, look=DEADLINE, patience=DEADLINE)
        keys = ProviderKeys(provider.url, tls=trusting(""), pace=pace)
        world = World()
        world.identity = Identity([SECRET], ProviderTokens(rules, keys))
        thread = threading.Thread(target=keys.run, name="provider-keys")
        thread.start()
        try:
            with serving(world) as api:
                for one in ("acme", "globex"):
                    world.create(one)
                registration = Registration(
                    issuer=provider.issuer, client_id=CLIENT, client_secret=CLIENT_SECRET,
                    public_url=f"{api.url}{PREFIX}", scopes="openid groups",
                )  # fmt: skip
                provider.redirect_uris = {registration.redirect_uri}
                here = Here(api, provider, Logins(registration, world.identity, PACE))
                yield here
                for one in here.visitors:
                    one.client.close()
        finally:
            keys.stop()
            thread.join(DEADLINE)


def as_at_first(here: Here) -> Here:
    """Give it back as it was before any test."""
    provider = here.provider
    provider.answer, provider.told, provider.declines = provider.show, {}, False
    provider.secret, provider.person = CLIENT_SECRET, {"sub": "ann", "groups": ["ops"]}
    provider.sign = lambda said: provider.signer.token(**said)
    provider.paths.clear()
    here.register(
        client_secret=CLIENT_SECRET, scopes="openid groups", session=timedelta(hours=8),
        public_url=here.address,
    )  # fmt: skip
    return here
