"""The page's viewer and their rights, by the access table that decides about every API call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

from tenantry.api import access
from tenantry.http.problems import Problem
from tenantry.http.tokens import Scope
from tenantry.page.asking import Answer, Api


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """The page's viewer, as the API knows them."""

    name: str
    scope: Scope
    tenant_id: str | None
    payloads: bool
    anonymous: bool

    @classmethod
    def of(cls, told: Any) -> Self:
        """Make a viewer from the answer of `GET /whoami`."""
        return cls(
            name=told["name"],
            scope=Scope(told["scope"]),
            tenant_id=told["tenant_id"],
            payloads=told["payloads"],
            anonymous=told["anonymous"],
        )

    def may(self, call: str) -> bool:
        """Tell whether the viewer may make a call, such as `POST /tenants/{tenant_id}/pause`."""
        method, _, path = call.partition(" ")
        return access.may((method, path), self.scope, payloads=self.payloads)

    def must(self, call: str) -> None:
        """Raise `Problem`, a 403, unless the viewer may make a call."""
        if not self.may(call):
            raise Problem(403, f"the scope {self.scope.value} is not good for this")

    @property
    def is_tenant(self) -> bool:
        """Whether the viewer is a tenant's, and sees that tenant's page alone."""
        return self.scope is Scope.TENANT


class NotLetIn(Exception):  # noqa: N818 - no error: it asks who it is
    """The viewer has no token, or a bad one; the message says which."""


def let_in(answer: Answer) -> Answer:
    """Return a successful answer; raise for a missing token, and for any other error."""
    if answer.status == 401:
        raise NotLetIn(answer.problem)
    if not answer.well:
        raise Problem(answer.status, answer.problem)
    return answer


def let_in_or_ask_again(api: Api, who: Answer) -> Answer:
    """Ask for another token if the browser's is no longer valid."""
    if api.has_token and who.status in {403, 404}:
        raise NotLetIn(who.problem)
    return let_in(who)


async def viewer_of(api: Api) -> Viewer:
    """Return the viewer. Raises `NotLetIn`, `Problem`."""
    return Viewer.of(let_in(await api.get("/whoami")).body)


async def admitted(api: Api, call: str) -> Viewer:
    """Return the viewer if they may make a call. Raises `NotLetIn`, `Problem`."""
    viewer = await viewer_of(api)
    viewer.must(call)
    return viewer


async def with_tenant(api: Api, tenant_id: str, call: str) -> tuple[Viewer, Any]:
    """Give the viewer, if they may make a call, and a tenant. Raises `NotLetIn`, `Problem`."""
    who, tenant = await asyncio.gather(api.get("/whoami"), api.get(f"/tenants/{tenant_id}"))
    viewer, found = Viewer.of(let_in(who).body), let_in(tenant).body
    viewer.must(call)
    return viewer, found
