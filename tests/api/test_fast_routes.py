"""The short ways answer exactly as the usual way does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import orjson
import pytest
from fastapi import FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tenantry.api.routing import FastRoutes
from tests.api.serving import World
from tests.depth import examples


class Ways:
    """One world, reached with short ways and without."""

    def __init__(self) -> None:
        self.world = World(max_body_bytes=10_000)
        self.world.create("acme", topics=("logs",), partitions=2)
        self.world.create("empty")
        for number in range(5):
            self.world.messages.add("acme", topic=("logs", "default")[number % 2])
        self._runner = asyncio.Runner()
        self._short = self._client(self.world.app())
        usual = self.world.app()
        (fast,) = (one for one in usual.user_middleware if one.cls is FastRoutes)
        fast.kwargs["routes"] = []
        self._usual = self._client(usual)

    @staticmethod
    def _client(app: FastAPI) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def both(self, method: str, url: str, **kwargs: Any) -> tuple[Any, Any]:
        """Give what the short way and the usual way answer, correlation ids left out."""
        kwargs["headers"] = {"X-Request-ID": "the-same"} | kwargs.get("headers", {})
        return tuple(
            (answer.status_code, answer.content, dict(answer.headers))
            for answer in (
                self._runner.run(client.request(method, url, **kwargs))
                for client in (self._short, self._usual)
            )
        )

    def close(self) -> None:
        for client in (self._short, self._usual):
            self._runner.run(client.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def ways() -> Iterator[Ways]:
    made = Ways()
    yield made
    made.close()


NAMES = st.sampled_from(["tenant_id", "topic", "limit", "cursor", "order", "Limit", ""])
WORDS = "acme empty nobody logs default 1 2 0 1001 +1 01 1.0 1e2 asc desc ASC true é A.B"
VALUES = st.sampled_from([*WORDS.split(), "", " 1", "\0"]) | st.text(max_size=8)


@settings(max_examples=examples(25, 300), deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=5), st.booleans())
@example([("limit", "2")], True)
@example([("limit", "2"), ("order", "desc"), ("topic", "logs")], True)
@example([("tenant_id", "empty")], True)
@example([], False)
@example([("tenant_id", "")], False)
def test_pages_are_the_same_either_way(
    ways: Ways, query: list[tuple[str, str]], whole: bool
) -> None:
    pairs = [("tenant_id", "acme"), *query] if whole else query
    text = urlencode(pairs, errors="surrogatepass")
    short, usual = ways.both("GET", f"/messages?{text}")
    assert short == usual


def test_a_cursor_leads_on_either_way(ways: Ways) -> None:
    query = "tenant_id=acme&limit=2"
    seen = []
    while query:
        short, usual = ways.both("GET", f"/messages?{query}")
        assert short == usual
        page = orjson.loads(short[1])
        seen += [one["position"] for one in page["data"]]
        query = page["next_cursor"] and f"tenant_id=acme&limit=2&cursor={page['next_cursor']}"
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "query",
    [
        "tenant_id=acme&tenant_id=acme",
        "tenant_id=acme&limit=2&limit=3",
        "tenant_id=%FF",
        "tenant_id=acme&topic=%ZZ",
        "tenant_id=acme;limit=1",
        "tenant_id",
        "&&tenant_id=acme&",
        "tenant_id=acme&limit=" + "9" * 5000,
    ],
)
def test_odd_queries_are_answered_the_same_either_way(ways: Ways, query: str) -> None:
    short, usual = ways.both("GET", f"/messages?{query}")
    assert short == usual


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "get"])
def test_other_methods_go_the_usual_way(ways: Ways, method: str) -> None:
    short, usual = ways.both(method, "/messages?tenant_id=acme")
    assert short == usual


def test_an_error_nobody_expected_is_a_500_either_way(ways: Ways) -> None:
    ways.world.messages.error = ZeroDivisionError("never seen by the client")
    try:
        short, usual = ways.both("GET", "/messages?tenant_id=acme")
    finally:
        ways.world.messages.error = None
    assert short == usual
    assert short[0] == 500
    assert b"never" not in short[1]


@pytest.mark.parametrize("path", ["m-1", "m%2D1", "nope", "a%0Ab", "%00", "%FF", "", "a//b"])
def test_one_message_is_the_same_either_way(ways: Ways, path: str) -> None:
    for tenant_id in ("acme", "empty", "nobody", "A.B"):
        short, usual = ways.both("GET", f"/tenants/{tenant_id}/messages/{path}")
        assert short == usual
