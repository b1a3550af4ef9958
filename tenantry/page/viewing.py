"""Who looks at the page, and what they may do: by the same table that decides about every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from tenantry.api import access
from tenantry.http.problems import Problem
from tenantry.http.tokens import Scope
from tenantry.page.asking import Answer, Api


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks, as the API knows them."""

    name: str
    scope: Scope
    tenant_id: str | None
    payloads: bool
    anonymous: bool

    @classmethod
    def of(cls, told: Any) -> Self:
        """Read what `GET /whoami` tells."""
        return cls(
            name=told["name"],
            scope=Scope(told["scope"]),
            tenant_id=told["tenant_id"],
            payloads=told["payloads"],
            anonymous=told["anonymous"],
        )

    def may(self, call: str) -> bool:
        """Tell whether a call is theirs to make: `POST /tenants/{tenant_id}/pause`, say."""
        method, _, path = call.partition(" ")
        return access.may((method, path), self.scope, payloads=self.payloads)

    def must(self, call: str) -> None:
        """Raise `Problem`, a 403, unless a call is theirs to make."""
        if not self.may(call):
            raise Problem(403, f"the scope {self.scope.value} is not good for this")

    @property
    def is_tenant(self) -> bool:
        """Whether it is a tenant, who sees the page of that one alone."""
        return self.scope is Scope.TENANT


class NotLetIn(Exception):  # noqa: N818 - no error: it asks who it is
    """Who looks has no token, or a bad one; the message says which."""


def let_in(answer: Answer) -> Answer:
    """Give an answer back, unless it is that a token is needed, or something else is wrong."""
    if answer.status == 401:
        raise NotLetIn(answer.problem)
    if not answer.well:
        raise Problem(answer.status, answer.problem)
    return answer


def let_in_or_ask_again(api: Api, who: Answer) -> Answer:
    """Ask for another token where the one that the browser keeps is good for nothing, any more."""
    if api.has_token and who.status in {403, 404}:
        raise NotLetIn(who.problem)
    return let_in(who)


async def viewer_of(api: Api) -> Viewer:
    """Tell who looks. Raises `NotLetIn`, `Problem`."""
    return Viewer.of(let_in(await api.get("/whoami")).body)


async def admitted(api: Api, call: str) -> Viewer:
    """Tell who looks, if a call is theirs to make. Raises `NotLetIn`, `Problem`."""
    viewer = await viewer_of(api)
    viewer.must(call)
    return viewer
