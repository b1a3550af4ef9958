"""Hundreds of requests made up from the OpenAPI document, against the API over ports in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tenantry.api.access import TABLE, shown
from tenantry.broker.port import QueuedDeadLetter
from tenantry.dead_letters.port import RejectedMessage
from tenantry.http.auth import Access
from tenantry.http.tokens import Tokens
from tenantry.messages.port import Incoming
from tests.api.cases import MODES, OPERATIONS, UNDESCRIBED, Api, attack, load
from tests.api.serving import SECRET, World, serving
from tests.depth import THOROUGH, examples

EXAMPLES = examples(3, 30)
TENANTS = ("acme", "other")


TOKENS = ["with tokens", "without tokens"] if THOROUGH else ["with tokens"]
"""To make requests up costs most. Without a secret every call is an administrator's."""


@pytest.fixture(scope="module", params=TOKENS)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Api, World]]:
    world = World(jwt_secret=SECRET) if request.param == "with tokens" else World()
    with serving(world) as served:
        served.app.state.services.streams._longest = 0.0  # a stream that is well ends at once
        loaded = load(served.url)
        yield loaded, world
        loaded.session.close()


@pytest.fixture
def api(made: tuple[Api, World]) -> Api:
    """The API, with two tenants that have messages, whatever was done to them before."""
    loaded, world = made
    for tenant_id in TENANTS:
        state = world.directory.get(tenant_id)
        if state is None or not state.exists:
            world.create(tenant_id, topics=("logs",))
        world.messages.add(tenant_id, headers='{"n": 1}')
        world.messages.add(tenant_id, payload=None, body=b"x", content_type="text/plain")
        letter = Incoming("m", "default", 0, b"bad", None, {"n": 1}, 1)
        world.letters.add(tenant_id, [RejectedMessage(letter, "not_json", "no JSON", 1)])
        world.dead_letters.queues[tenant_id] = [QueuedDeadLetter(letter, "rejected", None, b"")]
    return loaded


def _bearer(tenant_id: str | None) -> dict[str, str]:
    token = Tokens(SECRET).issue(
        subject="ann", now=datetime.now(UTC), ttl=timedelta(hours=1), tenant_id=tenant_id
    )
    return {"Authorization": f"Bearer {token}"}


def test_every_route_is_described(api: Api) -> None:
    described = {
        f"{method.upper()} {path}"
        for path, operations in api.schema.raw_schema["paths"].items()
        for method in operations
    }
    assert described == set(OPERATIONS)
    assert len(OPERATIONS) == len(TABLE) - len(UNDESCRIBED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_is_one_that_is_described(api: Api, operation: str, mode: str) -> None:
    tokens = [_bearer(None), {}, _bearer(None), _bearer("acme"), {"Authorization": "Bearer x"}]
    turn = iter(range(10_000))
    attack(
        api,
        operation,
        mode,
        examples=EXAMPLES,
        tenants=TENANTS,
        headers=lambda: tokens[next(turn) % len(tokens)],
    )


def test_the_document_says_what_may_be_called_without_a_token(api: Api) -> None:
    table = {(method, shown(path)): access for (method, path), access in TABLE.items()}
    for path, operations in api.schema.raw_schema["paths"].items():
        for method, operation in operations.items():
            public = table[method.upper(), path] is Access.PUBLIC
            assert (operation["security"] == []) == public
            assert ("401" in operation["responses"]) != public
