"""HEAD follows GET, on both listeners, with a token and without."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import jwt
import pytest

from tenantry.api.access import TABLE
from tests.api.serving import SECRET, Served, World, serving

READ = sorted(path.replace(":any", "") for method, path in TABLE if method == "GET")
QUERIES = {"/messages": "?tenant_id=acme", "/messages/stream": "?tenant_id=acme"}
PASSING = {"date", "x-request-id", "content-length"}
"""Headers whose values are no two requests' the same, or follow what is counted meanwhile."""

CLAIMS = {"exp": datetime.now(UTC) + timedelta(hours=1), "sub": "ann", "scope": "admin"}


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme")
        yield served


@pytest.mark.parametrize("path", READ)
@pytest.mark.parametrize("listener", ["control", "tcp"])
def test_head_is_answered_as_get_without_the_body(api: Served, listener: str, path: str) -> None:
    client: httpx.Client = getattr(api, listener)
    names = {
        "tenant_id": "acme",
        "asset": "index.html",
        "letter_id": "x",
        "part": "1",
        "message_id": "m",
    }
    url = path.format_map(names) + QUERIES.get(path, "")
    for headers in ({}, {"Authorization": f"Bearer {jwt.encode(CLAIMS, SECRET)}"}):
        with client.stream("GET", url, headers=headers) as got:  # one of them has no end
            pass
        head = client.head(url, headers=headers)
        assert head.status_code == got.status_code
        assert head.content == b""
        assert head.headers.keys() == got.headers.keys()
        assert {name: head.headers[name] for name in head.headers.keys() - PASSING} == {
            name: got.headers[name] for name in got.headers.keys() - PASSING
        }


def test_only_what_takes_get_takes_head(api: Served) -> None:
    answer = api.control.head("/stop")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
