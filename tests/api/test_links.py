"""`Link` headers beside cursors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.requests import Request

from tenantry.api import paging
from tests.api.serving import Served, World, serving


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        for number in range(5):
            served.world.create(f"t-{number}")
        for _ in range(5):
            served.world.messages.add("t-0", topic="default")
        yield served


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("/tenants?limit=2", 5),
        ("/messages?tenant_id=t-0&limit=2", 5),
        ("/messages?tenant_id=t-0&limit=2&order=desc&topic=default", 5),
        ("/messages?tenant_id=t-0&limit=5", 5),
        ("/events?limit=3", 10),
        ("/events?limit=5&wait=0", 10),
        ("/tenants/t-0/events?limit=1", 2),
    ],
)
def test_following_links_gives_everything_and_ends(api: Served, path: str, count: int) -> None:
    found = []
    for _ in range(20):
        answer = api.tcp.get(path)
        found += answer.json()["data"]
        if "next" not in answer.links:
            break
        assert answer.links["next"]["rel"] == "next"
        path = answer.links["next"]["url"]
    else:
        pytest.fail("the links never end")
    assert len(found) == count


def test_a_link_is_the_page_that_next_cursor_leads_to(api: Served) -> None:
    answer = api.tcp.get("/tenants", params={"limit": 2})
    by_cursor = api.tcp.get("/tenants", params={"limit": 2, "cursor": answer.json()["next_cursor"]})
    assert api.tcp.get(answer.links["next"]["url"]).json() == by_cursor.json()


def test_nothing_in_a_request_breaks_out_of_the_header() -> None:
    scope = {
        "type": "http",
        "path": '/ten>ants\r\nX: y"',
        "query_string": b"topic=%3E%0D%0AX%3A+y%22&cursor=old&limit=1",
        "headers": [],
        "server": ("localhost", 80),
    }
    header = paging.link_header(Request(scope), "new")["Link"]
    assert header == (
        '</ten%3Eants%0D%0AX%3A%20y%22?topic=%3E%0D%0AX%3A+y%22&limit=1&cursor=new>; rel="next"'
    )
    assert paging.link_header(Request(scope), None) == {}
