"""Requests generated from the OpenAPI document against a running daemon, with and without tokens.

A run makes some dozens, of operations that use the broker or the database, which `tests/contract`
has in memory; a thorough run makes hundreds, of all operations. TENANTRY_TEST_MADE_UP=50 makes
thousands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import pytest

from tests.acceptance.program import Program
from tests.api.cases import ENDING, MODES, OPERATIONS, attack, load
from tests.api.serving import SECRET
from tests.depth import THOROUGH, examples
from tests.waiting import DEADLINE, eventually

EXAMPLES = int(os.environ.get("TENANTRY_TEST_MADE_UP", examples(1, 20)))

SECRETS = {"with tokens": SECRET} | ({"without tokens": ""} if THOROUGH else {})
"""Only a thorough run goes without tokens, as `tests/contract` tries that as well."""


def _bearer(program: Program, *arguments: str) -> dict[str, str]:
    ended = program.cli("token", *arguments, "--ttl", "1d")
    assert ended.code == 0, ended.stderr
    return {"Authorization": f"Bearer {ended.stdout.strip()}"}


STANDING_ON_ADAPTERS = ("/messages", "/dead-letters", "/events", "/audit", "/config", "/topics")


def _tried() -> list[str]:
    # A successful stream does not end, so it is left out.
    left = [name for name in OPERATIONS if name not in {*ENDING, "GET /messages/stream"}]
    if not THOROUGH:
        left = [name for name in left if any(part in name for part in STANDING_ON_ADAPTERS)]
    return sorted(left, key=lambda name: name == "DELETE /tenants/{tenant_id}")


@pytest.mark.timeout(300 + 60 * EXAMPLES)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_running_daemon_answers_as_described(program: Program, secret: str) -> None:
    program.settings["TENANTRY_LOG_LEVEL"] = "debug"
    if secret:
        program.settings["TENANTRY_JWT_SECRET"] = secret
    program.start()
    tenants = [program.create(word, topics=["logs"]) for word in ("acme", "other")]
    publication = {"payload": {"n": 1}, "topic": "logs"}
    for tenant in tenants:
        program.call("POST", f"/tenants/{tenant.id}/messages", publication)
    tokens: list[Mapping[str, str]] = [{}]
    if secret:
        admin, own = _bearer(program, "--admin"), _bearer(program, "--tenant", tenants[0].id)
        tokens = [admin, admin, admin, own, {}, {"Authorization": "Bearer x.y.z"}]
    api = load(f"http://127.0.0.1:{program.get('/info')['server']['port']}")
    turn = iter(range(10**9))
    ids = tuple(tenant.id for tenant in tenants)
    left = _tried()
    try:
        for operation in left:
            for mode in MODES:
                attack(
                    api,
                    operation,
                    mode,
                    examples=EXAMPLES,
                    tenants=ids,
                    headers=lambda: tokens[next(turn) % len(tokens)],
                )
    finally:
        api.session.close()
    print(sorted(api.answers.items()))
    assert api.answers.total() >= EXAMPLES * len(left)
    assert program.status_of("/healthz") == 200
    eventually(lambda: program.status_of("/readyz") == 200)
    for line in program.logged:
        assert isinstance(json.loads(line), dict)
    assert not program.events("api.request_crashed")
    for one in program.get("/tenants?limit=1000")["data"]:
        assert program.call("DELETE", f"/tenants/{one['id']}", timeout=DEADLINE).status_code == 204
