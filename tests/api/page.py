"""The operator's page as a browser meets it: forms, cookies, and what is written on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import httpx

from tenantry.http.tokens import Scope, Tokens
from tests.api.serving import SECRET, Served

TOKENS = Tokens(SECRET)


def token(
    tenant_id: str | None = None, scope: Scope = Scope.ADMIN, *, payloads: bool = False
) -> str:
    return TOKENS.issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id,
        scope=scope, payloads=payloads,
    )  # fmt: skip


class Browser:
    """Asks for pages and sends their forms, with the cookie of a session if there is one."""

    def __init__(self, api: Served, session: str | None = None) -> None:
        self._api = api
        self._session = session

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._api.tcp.get(path, params=params or None, headers=self._headers())

    def send(self, path: str, **fields: Any) -> httpx.Response:
        headers = {"Sec-Fetch-Site": "same-origin", "Origin": self._api.url, **self._headers()}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = str(httpx.QueryParams(fields))
        return self._api.tcp.post(path, content=content, headers=headers)

    def _headers(self) -> dict[str, str]:
        return {} if self._session is None else {"Cookie": f"tenantry_session={self._session}"}


class Written(HTMLParser):
    """What is on a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def links(self) -> list[str]:
        hrefs = (given.get("href") for tag, given in self.elements if tag == "a")
        return [one for one in hrefs if one is not None]

    def actions(self) -> set[str]:
        return {given["action"] or "" for tag, given in self.elements if "action" in given}


def refuse_what_a_strict_policy_would_stop(page: str) -> None:
    """Hold a page to its own policy: nothing inline, nothing from elsewhere."""
    for tag, given in Written(page).elements:
        assert tag not in {"style", "base", "iframe", "object", "embed"}
        assert tag != "script" or given.get("src")
        for name, value in given.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in {"href", "src", "action"}:
                assert "://" not in (value or "")
                assert not (value or "").startswith(("//", "javascript:", "data:"))
